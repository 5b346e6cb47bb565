/** What the operator hears of programs that could not be attached (src/agent/attachments.ts). */
import { LoaderError } from 'bpf-loader';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Attachments, type AttachmentsDeps } from '../../src/agent/attachments.js';

const test = suite('attachments');

test('an interface that went meanwhile is looked for again, and is no error; what cannot be attached is one', async () => {
	const failures = new Map([
		[5, new LoaderError('NO_INTERFACE', 'attach endpoint_tc: no such device')],
		[6, new LoaderError('ATTACH_FAILED', 'attach endpoint_tc: no memory')],
	]);
	let gone = 0;
	const attach = (ifindex: number) => {
		const failure = failures.get(ifindex);
		if (failure !== undefined) throw failure;
	};
	const a = new Attachments({
		datapath: { attachEndpoint: attach, attachEndpointAsync: async (ifindex: number) => attach(ifindex) },
		names: () => new Map([[6, 'veth6']]),
		isClosed: () => false,
		onGone: () => gone++,
		onDone: () => undefined,
	} as unknown as AttachmentsDeps);
	for (const beside of [false, true]) {
		gone = 0;
		a.attachEndpoints(new Set([4, 5, 6]), { known: false, beside });
		await a.idle();
		assert.equal(a.errors(), ['veth6: attach endpoint_tc: no memory']);
		assert.is(gone, 1);
	}
	// The next look knows of none.
	a.attachEndpoints(new Set([4]), { known: false, beside: true });
	assert.equal(a.errors(), []);
});

test.run();
