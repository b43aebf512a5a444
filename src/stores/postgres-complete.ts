import { asBuffer } from '../contract/as-buffer.js'
import type { Completion, Outcome, StatementValue } from '../contract/store.js'
import type { TableNames } from './postgres-names.js'
import { bucketOf } from './postgres-record.js'
import { PLANNED_FOR_GROWTH } from './postgres-steps.js'
import { bytesLiteral, HERE, type TwofoldStatement, twofold } from './postgres-text.js'

/** The SQLSTATE that the completing function raises when its token no longer holds a running claim. */
export const CLAIM_LOST = 'OK001'

/**
 * The function that completes a record as a part of a transaction, or fails, so that the commit that follows it in the
 * same round trip commits nothing.
 */
export function completeFunction({ table, complete }: TableNames): string {
  return `
create or replace function ${complete}(
  p_id text, p_token text, p_ttl_ms float8, p_result text, p_head bytea, p_body bytea
) returns void language plpgsql ${PLANNED_FOR_GROWTH} as $complete$
begin
  update ${table} r set
    status = 'completed', result = p_result, head = convert_from(p_head, 'UTF8'), body = p_body,
    completed_at = clock_timestamp(), expires_at = clock_timestamp() + p_ttl_ms * interval '1 millisecond',
    expiry_bucket = ${bucketOf(`clock_timestamp() + p_ttl_ms * interval '1 millisecond'`)}
  where r.id = p_id and r.token = p_token and r.status = 'running' and r.expires_at > clock_timestamp();
  if not found then
    raise exception 'The claim was lost' using errcode = '${CLAIM_LOST}';
  end if;
end
$complete$;`
}

/** A body that is longer goes as a value of its own: as text it would be twice as long. */
const LONGEST_TEXT_BYTES = 32_768

/** Characters of base64url and of UUIDs: what ids and tokens are made of, and what nothing needs to be quoted in. */
const PLAIN = /^[A-Za-z0-9_-]+$/

/**
 * The call of the completing function as a text without values, so that a commit can follow in it; `undefined` where it
 * cannot be one. What comes from outside is in it as hexadecimal digits only.
 */
export function completeOrFailText(
  complete: string,
  { id, token, outcome, ttlMs }: Completion,
): string | undefined {
  const { result, head, body } = outcome
  if (!PLAIN.test(id) || !PLAIN.test(token) || !Number.isFinite(ttlMs)) return undefined
  if (body !== null && body.byteLength > LONGEST_TEXT_BYTES) return undefined
  const values = [
    `'${id}'`,
    `'${token}'`,
    ttlMs,
    result === 'failed' ? `'failed'` : `'succeeded'`,
    bytesLiteral(Buffer.from(head)),
    body === null ? 'null' : bytesLiteral(asBuffer(body)),
  ]
  return `select ${complete}(${values.join(', ')})`
}

/**
 * Completes a record as a part of a transaction, once: not where an earlier transaction of the same token has. Its values
 * are `completionValues`. One row when it is kept.
 */
export function completeOnce(table: string): TwofoldStatement {
  return twofold(completionText(table, ''))
}

/**
 * As `completeOnce`, where somebody else sends it and could do so outside of the transaction, by a slip: then it does
 * nothing. A transaction that has written has a number, and a statement of its own has none before it writes. One row
 * when it is kept, none when the claim was lost, two when the transaction has written nothing, or is none.
 */
export function completeInWritten(table: string): TwofoldStatement {
  return twofold(`
with kept as (${completionText(table, 'and pg_current_xact_id_if_assigned() is not null')})
select 1 as done from kept
union all
select 2 from generate_series(1, 2) where pg_current_xact_id_if_assigned() is null`)
}

/** The values of `completeOnce` and `completeInWritten`. */
export function completionValues({ id, token, outcome, ttlMs }: Completion): StatementValue[] {
  const { result, head, body } = outcome
  return [result, head, bytesOf(body), ttlMs, ttlMs, id, token]
}

/** Bytes as every client takes them. */
export function bytesOf(body: Outcome['body']): Buffer | null {
  return body === null ? null : asBuffer(body)
}

function completionText(table: string, condition: string): string {
  const expiresAt = `clock_timestamp() + ${HERE}::float8 * interval '1 millisecond'`
  return `
update ${table} r set
  status = 'completed', result = ${HERE}::text, head = ${HERE}::text, body = ${HERE}::bytea,
  completed_at = clock_timestamp(), expires_at = ${expiresAt}, expiry_bucket = ${bucketOf(expiresAt)}
where r.id = ${HERE}::text and r.token = ${HERE}::text and r.status = 'running'
  and r.expires_at > clock_timestamp() ${condition}
returning 1 as done`
}
