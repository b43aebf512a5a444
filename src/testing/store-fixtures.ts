import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import type { ClaimRequest, IdempotencyStore, Outcome, StoredRecord } from '../contract/store.js'

/** Longer than any test takes. */
export const HOUR = 3_600_000

/** A claim with an id and a token of its own. Its lease is long: nothing lapses unless a case makes it. */
export function aClaim(given: Partial<ClaimRequest> = {}): ClaimRequest {
  const meta = {
    key: 'invoice-42',
    route: 'POST /payments',
    scope: 'c2NvcGU',
    firstSeenAt: 1_790_000_000_000,
  }
  return {
    id: anId(),
    token: aToken(),
    fingerprint: 'Zmlyc3Q',
    leaseMs: HOUR,
    ttlMs: HOUR,
    takeOver: false,
    mayBeLost: false,
    meta,
    ...given,
  }
}

/** An outcome, with a body of two bytes. */
export function anOutcome(given: Partial<Outcome> = {}): Outcome {
  return { result: 'succeeded', head: '{"status":201}', body: Buffer.from('{}'), ...given }
}

/** An id that no other case uses. */
export function anId(): string {
  return randomBytes(32).toString('base64url')
}

/** A token that nobody holds. */
export function aToken(): string {
  return randomUUID()
}

/** A claim whose lease has lapsed by the store's clock, and which nobody resolved. */
export async function lapsed(store: IdempotencyStore): Promise<ClaimRequest> {
  const claim = aClaim()
  await store.claim(claim)
  assert.equal(await store.renew(claim.id, claim.token, 1), true)
  await until(store, claim.id, (record) => record?.status === 'unknown')
  return claim
}

/** Asks the store until its clock has made `isSo` true. */
export async function until(
  store: IdempotencyStore,
  id: string,
  isSo: (record: StoredRecord | undefined) => boolean,
): Promise<void> {
  const givesUpAt = Date.now() + 10_000
  while (!isSo(await store.find(id))) {
    assert.ok(Date.now() < givesUpAt, 'the record did not change within 10 seconds')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** Compares two outcomes byte for byte. */
export function assertOutcome(actual: Outcome, expected: Outcome): void {
  assert.equal(actual.result, expected.result)
  assert.equal(actual.head, expected.head)
  assert.equal(actual.body === null, expected.body === null)
  if (actual.body === null || expected.body === null) return
  assert.deepEqual(Buffer.from(actual.body), Buffer.from(expected.body))
}

/** Checks a number against two bounds, both included. */
export function assertBetween(actual: number, min: number, max: number): void {
  assert.ok(actual >= min && actual <= max, `${actual} is not between ${min} and ${max}`)
}

/** Calls `make` that many times. */
export function times<T>(count: number, make: () => T): T[] {
  return Array.from({ length: count }, make)
}
