import { createMemoryStore } from './memory-store.js';
import { storeContract } from './store.contract.js';

storeContract('memory', () => ({ store: createMemoryStore(), close() {} })).run();
