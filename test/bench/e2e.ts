export async function e2eBench(_runs: number): Promise<void> {}
