/** What a body or a query should have been, in words; zod speaks of types of TypeScript. */

/** The parts of zod's issues that are read here. */
interface Issue {
	readonly code?: string | undefined;
	readonly message: string;
	readonly expected?: unknown;
	readonly origin?: unknown;
	readonly minimum?: unknown;
	readonly maximum?: unknown;
	readonly values?: readonly unknown[];
}

const TYPES: Readonly<Record<string, string>> = {
	object: 'a JSON object',
	array: 'a list',
	string: 'a text',
	number: 'a number',
	int: 'a whole number',
	boolean: 'true or false',
};
const UNITS: Readonly<Record<string, string>> = { string: ' characters', array: ' items' };

/** Messages that the schema gives itself stay as they are. */
export function expected(issue: Issue): string {
	if (!/^(Invalid|Too|Unrecognized)\b/.test(issue.message)) return issue.message;
	const unit = UNITS[String(issue.origin)] ?? '';
	switch (issue.code) {
		case 'invalid_type':
			return `${issue.message.endsWith('received undefined') ? 'is missing: ' : ''}expected ${TYPES[String(issue.expected)] ?? issue.expected}`;
		case 'invalid_value': {
			const values = (issue.values ?? []).map(String);
			return `expected ${values.slice(0, -1).join(', ')}${values.length > 1 ? ' or ' : ''}${values.at(-1)}`;
		}
		case 'too_small':
			return `expected at least ${issue.minimum}${unit}`;
		case 'too_big':
			return `expected at most ${issue.maximum}${unit}`;
		default:
			return issue.message;
	}
}
