export async function liveBench(_runs: number): Promise<void> {}
