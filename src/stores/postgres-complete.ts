import type { Completion } from '../contract/store.js'
import type { TableNames } from './postgres-migrations.js'
import { bucketOf } from './postgres-record.js'

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
) returns void language plpgsql as $complete$
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
    hex(Buffer.from(head)),
    body === null ? 'null' : hex(Buffer.from(body.buffer, body.byteOffset, body.byteLength)),
  ]
  return `select ${complete}(${values.join(', ')})`
}

function hex(bytes: Buffer): string {
  return `decode('${bytes.toString('hex')}', 'hex')`
}
