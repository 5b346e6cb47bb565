export async function controlBench(_runs: number): Promise<void> {}
