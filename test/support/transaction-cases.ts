import assert from 'node:assert/strict'
import type { Completion, TransactionResult, TransactionSettings } from '../../src/contract/store.js'
import type { PostgresStore } from '../../src/stores/postgres.js'
import { aClaim, anOutcome, HOUR } from '../../src/testing/store-fixtures.js'
import { gate } from './gate.js'

/** A store of some client, and ways to look at what its transactions did. */
export interface TransactionSubject {
  readonly store: PostgresStore
  /** Runs a statement within a transaction, as an application would with this client, and gives its rows. */
  within(client: unknown, text: string): Promise<readonly Record<string, unknown>[]>
  /** Runs a statement outside of every transaction, and gives its rows. */
  outside(text: string): Promise<readonly Record<string, unknown>[]>
}

/** One promise that every client has to keep about the statements of an application. */
export interface TransactionCase {
  readonly name: string
  readonly run: (subject: TransactionSubject) => Promise<void>
}

/** Settings of a transaction that nobody gives up. */
export function aTransaction(given: Partial<TransactionSettings> = {}): TransactionSettings {
  return {
    isolation: undefined,
    lockTimeoutMs: undefined,
    attempts: 3,
    signal: new AbortController().signal,
    ...given,
  }
}

/** What the cases write to: a unique `n` that is checked at once, and an even `late` that is checked at the commit. */
export const EFFECTS = `
create table if not exists effects (n text primary key, late int);
create or replace function refuse_odd() returns trigger language plpgsql as $body$
begin
  if new.late % 2 = 1 then raise exception 'odd' using errcode = 'check_violation'; end if;
  return null;
end $body$;
drop trigger if exists effects_even on effects;
create constraint trigger effects_even after insert on effects
  deferrable initially deferred for each row execute function refuse_odd();
`

/** The cases. Each makes rows of its own. */
export const transactionCases: readonly TransactionCase[] = [
  {
    name: 'commits statements and the outcome together, a large one too',
    async run({ store, within, outside }) {
      for (const body of [Buffer.from('small'), Buffer.alloc(100_000, 7)]) {
        const claim = await aClaimed(store)
        const completion = aCompletion(claim, { outcome: anOutcome({ body }) })
        const result = await transact(store, async (client) => {
          await within(client, insert(claim.id))
          return { value: 'value', completion }
        })
        assert.deepEqual(result, { committed: true, value: 'value' })
        assert.equal(await effects(outside, claim.id), 1)
        assert.equal((await store.find(claim.id))?.status, 'completed')
      }
    },
  },
  {
    name: 'rolls its statements back when the work rejects',
    async run({ store, within, outside }) {
      const { id } = aClaim()
      const reason = new Error('the reason')
      const failing = transact(store, async (client) => {
        await within(client, insert(id))
        throw reason
      })
      await assert.rejects(failing, (error) => error === reason)
      assert.equal(await effects(outside, id), 0)
    },
  },
  {
    name: 'rolls its statements back when the claim was lost, with a large outcome too',
    async run({ store, within, outside }) {
      for (const body of [null, Buffer.alloc(100_000)]) {
        const { id } = aClaim()
        const completion = aCompletion(aClaim(), { outcome: anOutcome({ body }) })
        const result = await transact(store, async (client) => {
          await within(client, insert(id))
          return { value: undefined, completion }
        })
        assert.deepEqual(result, { committed: false })
        assert.equal(await effects(outside, id), 0)
      }
    },
  },
  {
    name: 'runs at the isolation level that is asked for, and only then',
    async run({ store, within }) {
      const levelOf = (given: Partial<TransactionSettings>) =>
        readSetting({ store, within }, 'transaction_isolation', given)
      assert.equal(await levelOf({ isolation: 'serializable' }), 'serializable')
      assert.equal(await levelOf({ isolation: 'repeatable read' }), 'repeatable read')
      assert.equal(await levelOf({}), 'read committed')
    },
  },
  {
    name: 'limits the wait for locks where that is asked for, and only then',
    async run({ store, within }) {
      const limitOf = (given: Partial<TransactionSettings>) =>
        readSetting({ store, within }, 'lock_timeout', given)
      assert.equal(await limitOf({ lockTimeoutMs: 1234.5, isolation: 'serializable' }), '1235ms')
      assert.equal(await limitOf({ lockTimeoutMs: 70 }), '70ms')
      assert.equal(await limitOf({}), '0')
    },
  },
  {
    name: 'commits nothing when a statement failed and its error was ignored',
    async run({ store, within, outside }) {
      const claim = await aClaimed(store)
      const ignoring = async (client: unknown): Promise<void> => {
        await within(client, insert(claim.id))
        await within(client, 'select 1 / 0').catch(() => [])
      }
      const plain = transact(store, async (client) => {
        await ignoring(client)
        return { value: undefined, completion: undefined }
      })
      await assert.rejects(plain, isNoDoubt)
      for (const body of [null, Buffer.alloc(100_000)]) {
        const completion = aCompletion(claim, { outcome: anOutcome({ body }) })
        const keeping = transact(store, async (client) => {
          await ignoring(client)
          return { value: undefined, completion }
        })
        await assert.rejects(keeping, { code: 'IDEMPOTENCY_TRANSACTION_MISUSED' })
      }
      assert.equal(await effects(outside, claim.id), 0)
      assert.equal((await store.find(claim.id))?.status, 'running')
    },
  },
  {
    name: 'says what the server says when it refuses the commit',
    async run({ store, within, outside }) {
      const claim = await aClaimed(store)
      for (const completion of [undefined, aCompletion(claim)]) {
        const failing = transact(store, async (client) => {
          await within(client, insert(claim.id, 1))
          return { value: undefined, completion }
        })
        await assert.rejects(failing, { code: '23514' })
      }
      assert.equal(await effects(outside, claim.id), 0)
      assert.equal((await store.find(claim.id))?.status, 'running')
    },
  },
  {
    name: 'runs the work again, whole, after a conflict, as often as it may',
    async run({ store, within, outside }) {
      const { id } = aClaim()
      let runs = 0
      const conflict = Object.assign(new Error('conflict'), { code: '40001' })
      const work = (n: string, conflicts: number) => async (client: unknown) => {
        runs += 1
        await within(client, insert(n))
        if (runs <= conflicts) throw new Error('wrapped', { cause: conflict })
        return { value: undefined, completion: undefined }
      }
      await transact(store, work(id, 2))
      assert.deepEqual([runs, await effects(outside, id)], [3, 1])
      runs = 0
      await assert.rejects(transact(store, work(`${id}2`, 3)), { message: 'wrapped' })
      assert.equal(runs, 3)
    },
  },
  {
    name: 'rolls back when it is given up, and leaves the client as it was',
    async run({ store, within, outside }) {
      const { id } = aClaim()
      const controller = new AbortController()
      const { opened, open } = gate()
      const running = transact(
        store,
        async (client) => {
          await within(client, insert(id))
          open()
          return rejectedWhenAborted(controller.signal)
        },
        { signal: controller.signal },
      )
      await opened
      controller.abort(new Error('given up'))
      await assert.rejects(running, { message: 'given up' })
      assert.equal(await effects(outside, id), 0)
      await transact(store, async (client) => {
        await within(client, insert(id))
        return { value: undefined, completion: undefined }
      })
      assert.equal(await effects(outside, id), 1)
    },
  },
  {
    name: 'takes more transactions than there are connections, and steps among them',
    async run({ store, within, outside }) {
      const claims = await Promise.all(Array.from({ length: 30 }, () => aClaimed(store)))
      const all = claims.map(async (claim) => {
        await transact(store, async (client) => {
          await within(client, insert(claim.id))
          return { value: undefined, completion: aCompletion(claim) }
        })
        return store.find(claim.id)
      })
      for (const record of await Promise.all(all)) assert.equal(record?.status, 'completed')
      const counts = await Promise.all(claims.map(({ id }) => effects(outside, id)))
      assert.deepEqual(new Set(counts), new Set([1]))
    },
  },
  {
    name: 'keeps an outcome in a transaction of the application, and not beside it',
    async run({ store, within, outside }) {
      const claim = await aClaimed(store)
      const completion = aCompletion(claim)
      const { completeIn } = store
      assert.ok(completeIn)
      const complete = (execute: (text: string) => Promise<readonly unknown[]>): Promise<boolean> =>
        completeIn(
          (text, values) => execute(inlined(text, values)),
          claim.id,
          claim.token,
          completion.outcome,
          HOUR,
        )
      await assert.rejects(complete(outside), { code: 'IDEMPOTENCY_TRANSACTION_MISUSED' })
      assert.equal((await store.find(claim.id))?.status, 'running')
      const failing = transact(store, async (client) => {
        assert.equal(await complete((text) => within(client, text)), true)
        throw new Error('rolled back')
      })
      await assert.rejects(failing, { message: 'rolled back' })
      assert.equal((await store.find(claim.id))?.status, 'running')
      await transact(store, async (client) => {
        await within(client, insert(claim.id))
        assert.equal(await complete((text) => within(client, text)), true)
        assert.equal(await complete((text) => within(client, text)), false)
        return { value: undefined, completion: undefined }
      })
      assert.equal((await store.find(claim.id))?.status, 'completed')
      assert.equal(await effects(outside, claim.id), 1)
    },
  },
]

type Work<T> = (client: unknown) => Promise<{
  readonly value: T
  readonly completion: Completion | undefined
}>

/** Runs work in a transaction of a store that has them. */
export function transact<T>(
  store: PostgresStore,
  work: Work<T>,
  given: Partial<TransactionSettings> = {},
): Promise<TransactionResult<T>> {
  assert.ok(store.transaction)
  return store.transaction(work, aTransaction(given))
}

/** The completion of a claim. */
export function aCompletion(
  { id, token }: Pick<Completion, 'id' | 'token'>,
  given: Partial<Completion> = {},
): Completion {
  return { id, token, outcome: anOutcome(), ttlMs: HOUR, ...given }
}

/** A claim that its store has granted. */
export async function aClaimed(store: PostgresStore) {
  const claim = aClaim()
  assert.equal((await store.claim(claim)).status, 'acquired')
  return claim
}

async function readSetting(
  { store, within }: Pick<TransactionSubject, 'store' | 'within'>,
  name: string,
  given: Partial<TransactionSettings>,
): Promise<unknown> {
  const result = await transact(
    store,
    async (client) => {
      const rows = await within(client, `select current_setting('${name}') as is`)
      return { value: rows[0]?.is, completion: undefined }
    },
    given,
  )
  return result.committed && result.value
}

/** A statement with its values in it, for clients that differ in how they take them. */
function inlined(text: string, values: readonly unknown[]): string {
  return text.replace(/\$(\d+)/g, (_, number: string) => {
    const value = values[Number(number) - 1]
    if (value instanceof Uint8Array) return `'\\x${Buffer.from(value).toString('hex')}'`
    return value === null ? 'null' : `'${String(value).replaceAll("'", "''")}'`
  })
}

/** A statement that adds a row. Ids are base64url: they need no escape. */
function insert(n: string, late = 0): string {
  return `insert into effects (n, late) values ('${n}', ${late})`
}

async function effects(outside: TransactionSubject['outside'], n: string): Promise<number> {
  return (await outside(`select 1 from effects where n = '${n}'`)).length
}

function isNoDoubt(error: unknown): boolean {
  return (error as { code?: unknown }).code !== 'IDEMPOTENCY_COMMIT_UNDECIDED'
}

function rejectedWhenAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}
