import assert from 'node:assert/strict'
import fc from 'fast-check'
import type { ClaimRequest, ClaimResult, IdempotencyStore } from '../../src/contract/store.js'
import { aClaim, anId, anOutcome, aToken, HOUR, until } from '../../src/testing/store-fixtures.js'

/** What the life of a key (section 3 of the design) says about one record. */
type ModelRecord =
  | { readonly state: 'absent' }
  | (Claimed & { readonly state: 'running' | 'unknown' })
  | (Claimed & { readonly state: 'completed'; readonly head: string })

interface Claimed {
  /** `undefined` after a release or a settlement: nobody holds it. */
  readonly token: string | undefined
  readonly fence: number
  readonly fingerprint: string
  readonly route: string
}

interface Model {
  readonly ids: readonly string[]
  readonly records: ModelRecord[]
  /** The last claim that each client believes to hold, by record. A crash forgets it. */
  readonly held: Map<string, ClaimRequest>
  steps: number
}

interface Where {
  readonly client: number
  readonly record: number
}

type Step<T> = (model: Model, store: IdempotencyStore, given: T) => Promise<void>

/**
 * Checks a store against the life of a key, in random interleavings of three clients and two records: claim, renew,
 * complete, release, lapse, crash, take over, settle.
 */
export async function checkStoreModel(
  createStore: () => IdempotencyStore,
  options: { readonly numRuns: number },
): Promise<void> {
  await fc.assert(
    fc.asyncProperty(fc.commands(commands, { maxCommands: 40 }), async (run) => {
      const store = createStore()
      const model: Model = {
        ids: [anId(), anId()],
        records: [{ state: 'absent' }, { state: 'absent' }],
        held: new Map(),
        steps: 0,
      }
      await fc.asyncModelRun(() => ({ model, real: store }), run)
    }),
    options,
  )
}

const client = fc.nat({ max: 2 })
const record = fc.nat({ max: 1 })
const where = fc.record({ client, record })
const asking = fc.record({
  client,
  record,
  takeOver: fc.boolean(),
  fingerprint: fc.constantFrom('one', 'one', 'one', 'two'),
})

const commands = [
  command('claim', asking, claim),
  command('claim', asking, claim),
  command('claim again', where, claimAgain),
  command('renew', where, renew),
  command('complete', where, complete),
  command('release', where, release),
  command('lapse', record, lapse),
  command('lapse', record, lapse),
  command('crash', client, crash),
  command('settle', fc.record({ record, removes: fc.boolean() }), settle),
]

function command<T>(name: string, given: fc.Arbitrary<T>, step: Step<T>) {
  return given.map((value) => ({
    check: () => true,
    async run(model: Model, store: IdempotencyStore) {
      model.steps += 1
      await step(model, store, value)
      for (const index of model.ids.keys()) await compare(model, store, index)
    },
    toString: () => `${name}(${JSON.stringify(value)})`,
  }))
}

async function claim(
  model: Model,
  store: IdempotencyStore,
  given: Where & { readonly takeOver: boolean; readonly fingerprint: string },
): Promise<void> {
  const { takeOver, fingerprint } = given
  const route = `route ${model.steps}`
  const request = aClaim({ id: idOf(model, given.record), takeOver, fingerprint })
  await askFor(model, store, given, { ...request, meta: { ...request.meta, route } })
}

async function claimAgain(model: Model, store: IdempotencyStore, given: Where): Promise<void> {
  const request = heldBy(model, given)
  if (request !== undefined) await askFor(model, store, given, request)
}

async function askFor(
  model: Model,
  store: IdempotencyStore,
  given: Where,
  request: ClaimRequest,
): Promise<void> {
  const now = recordOf(model, given.record)
  const next = afterClaim(now, request)
  const answer = await store.claim(request)
  assert.deepEqual(essence(answer), expectedAnswer(now, next))
  if (next === undefined) return
  model.records[given.record] = next
  model.held.set(holder(given), request)
}

/** The record after a claim that is granted; `undefined` where it is not. */
function afterClaim(now: ModelRecord, request: ClaimRequest): ModelRecord | undefined {
  const { token, fingerprint, takeOver } = request
  if (now.state === 'absent')
    return { state: 'running', token, fence: 1, fingerprint, route: request.meta.route }
  if (now.state === 'completed') return undefined
  if (now.token === token) return { ...now, state: 'running' }
  if (now.state === 'unknown' && takeOver && now.fingerprint === fingerprint)
    return { ...now, state: 'running', token, fence: now.fence + 1 }
  return undefined
}

function expectedAnswer(now: ModelRecord, next: ModelRecord | undefined): unknown {
  if (next !== undefined && 'fence' in next) return { status: 'acquired', fence: next.fence }
  if (now.state === 'running') return { status: 'running', fingerprint: now.fingerprint }
  if (now.state === 'unknown')
    return { status: 'unknown', fingerprint: now.fingerprint, fence: now.fence, route: now.route }
  if (now.state === 'completed') return { status: 'completed', fingerprint: now.fingerprint, head: now.head }
  return undefined
}

function essence(answer: ClaimResult): unknown {
  if (answer.status === 'acquired') return answer
  const { status, fingerprint } = answer
  if (status === 'running') return { status, fingerprint }
  if (status === 'unknown') return { status, fingerprint, fence: answer.fence, route: answer.meta.route }
  return { status, fingerprint, head: answer.outcome.head }
}

async function renew(model: Model, store: IdempotencyStore, given: Where): Promise<void> {
  const token = tokenOf(model, given)
  const now = recordOf(model, given.record)
  const holds = (now.state === 'running' || now.state === 'unknown') && now.token === token
  assert.equal(await store.renew(idOf(model, given.record), token, HOUR), holds)
  if (holds) model.records[given.record] = { ...now, state: 'running' }
}

async function complete(model: Model, store: IdempotencyStore, given: Where): Promise<void> {
  const token = tokenOf(model, given)
  const now = recordOf(model, given.record)
  const holds = now.state !== 'absent' && now.token === token
  const head = `outcome ${model.steps}`
  assert.equal(await store.complete(idOf(model, given.record), token, anOutcome({ head }), HOUR), holds)
  if (holds && now.state !== 'completed') model.records[given.record] = { ...now, state: 'completed', head }
}

async function release(model: Model, store: IdempotencyStore, given: Where): Promise<void> {
  const token = tokenOf(model, given)
  const now = recordOf(model, given.record)
  const holds = (now.state === 'running' || now.state === 'unknown') && now.token === token
  assert.equal(await store.release(idOf(model, given.record), token), holds)
  if (!holds) return
  model.records[given.record] =
    now.fence === 1 ? { state: 'absent' } : { ...now, state: 'unknown', token: undefined }
}

async function lapse(model: Model, store: IdempotencyStore, index: number): Promise<void> {
  const now = recordOf(model, index)
  if (now.state !== 'running' || now.token === undefined) return
  const id = idOf(model, index)
  assert.equal(await store.renew(id, now.token, 1), true)
  await until(store, id, (found) => found?.status === 'unknown')
  model.records[index] = { ...now, state: 'unknown' }
}

async function crash(model: Model, _store: IdempotencyStore, crashed: number): Promise<void> {
  for (const index of model.ids.keys()) model.held.delete(holder({ client: crashed, record: index }))
}

async function settle(
  model: Model,
  store: IdempotencyStore,
  given: { readonly record: number; readonly removes: boolean },
): Promise<void> {
  const now = recordOf(model, given.record)
  const head = `settled ${model.steps}`
  const resolution = given.removes ? 'release' : anOutcome({ head })
  assert.equal(await store.settle(idOf(model, given.record), resolution, HOUR), now.state === 'unknown')
  if (now.state !== 'unknown') return
  model.records[given.record] = given.removes
    ? { state: 'absent' }
    : { ...now, state: 'completed', token: undefined, head }
}

async function compare(model: Model, store: IdempotencyStore, index: number): Promise<void> {
  const expected = recordOf(model, index)
  const found = await store.find(idOf(model, index))
  if (found === undefined || expected.state === 'absent') {
    assert.equal(found?.status ?? 'absent', expected.state)
    return
  }
  const { status: state, fence, fingerprint, meta } = found
  const { token: _, ...visible } = expected
  const head = found.status === 'completed' ? { head: found.outcome.head } : {}
  assert.deepEqual({ state, fence, fingerprint, route: meta.route, ...head }, visible)
}

function recordOf(model: Model, index: number): ModelRecord {
  return model.records[index] ?? { state: 'absent' }
}

function idOf(model: Model, index: number): string {
  return model.ids[index] ?? assert.fail('there is no such record')
}

function holder(given: Where): string {
  return `${given.client}/${given.record}`
}

function heldBy(model: Model, given: Where): ClaimRequest | undefined {
  return model.held.get(holder(given))
}

/** The token of the client's last claim, or one that nobody holds. */
function tokenOf(model: Model, given: Where): string {
  return heldBy(model, given)?.token ?? aToken()
}
