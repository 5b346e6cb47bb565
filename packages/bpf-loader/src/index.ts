export { type BtfMember, type BtfType, readBtf } from './btf.js';
export { type Compiled, type CompileOptions, compile } from './compile.js';
export { readElf, type Section } from './elf.js';
export { LoaderError, type LoaderErrorCode } from './errors.js';
