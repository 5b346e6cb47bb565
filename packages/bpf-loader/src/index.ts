export { ensureBpffs, lockPinRoot, type PinLock } from './bpffs.js';
export { type BtfMember, type BtfType, readBtf } from './btf.js';
export { type Compiled, type CompileOptions, compile } from './compile.js';
export { readElf, type Section } from './elf.js';
export { LoaderError, type LoaderErrorCode } from './errors.js';
export { type Attachment, detachAll, Loaded, type LoadOptions, load, type TakenDown, type XdpMode } from './loader.js';
export { type LoadableObject, loadableObjects, type ObjectsOptions, readObjects, writeObjects } from './objects.js';
export { type MapSpec, mapSpecs } from './specs.js';
