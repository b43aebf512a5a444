import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { createIdempotency, memoryStore } from '../../src/index.js'
import { disturbed } from '../support/disturbed-store.js'
import { gate } from '../support/gate.js'

const aKey = (): string => randomUUID()

describe('createIdempotency › run', () => {
  it('runs the work once and gives every caller its value', async () => {
    const { run } = createIdempotency()
    const key = aKey()
    let runs = 0
    const work = async () => {
      runs += 1
      return { id: runs, at: new Date(0) }
    }
    const first = await run({ scope: 'acme', key, input: { b: 1, a: [2] } }, work)
    const retry = await run({ scope: 'acme', key, input: { a: [2], b: 1 } }, work)
    expect(first).toEqual({ id: 1, at: '1970-01-01T00:00:00.000Z' })
    expect(retry).toEqual(first)
    expect(runs).toBe(1)
  })

  it('tells the work its key, its fence and its signal', async () => {
    const { run } = createIdempotency()
    const key = aKey()
    const told = await run({ scope: 'acme', key }, ({ key: own, fence, signal }) => ({
      own,
      fence,
      aborted: signal.aborted,
    }))
    expect(told).toEqual({ own: key, fence: 1, aborted: false })
  })

  it('gives back undefined, null and values of any JSON type', async () => {
    const { run } = createIdempotency()
    for (const value of [undefined, null, 0, '', 'text', [1], { a: null }]) {
      const options = { scope: 'acme', key: aKey() }
      expect(await run<unknown>(options, () => value)).toEqual(value)
      expect(await run<unknown>(options, () => 'again')).toEqual(value)
    }
  })

  it('keeps what the work threw, and tells retries about it', async () => {
    const { run } = createIdempotency()
    const options = { scope: 'acme', key: aKey() }
    const declined = Object.assign(new TypeError('card declined'), { code: 'DECLINED' })
    const fail = () => {
      throw declined
    }
    await expect(run(options, fail)).rejects.toBe(declined)
    await expect(run(options, fail)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_OPERATION_FAILED',
      message: 'card declined',
      originalName: 'TypeError',
      originalCode: 'DECLINED',
    })
  })

  it('runs again after the work said that nothing happened', async () => {
    const { run } = createIdempotency()
    const options = { scope: 'acme', key: aKey() }
    await expect(
      run(options, (execution) => {
        execution.forget()
        throw new Error('not yet')
      }),
    ).rejects.toThrow('not yet')
    expect(
      await run(options, ({ forget }) => {
        forget()
        return 'nothing'
      }),
    ).toBe('nothing')
    expect(await run(options, () => 'something')).toBe('something')
    expect(await run(options, () => 'again')).toBe('something')
  })

  it('hands a value that JSON cannot express to the first caller only', async () => {
    const { run } = createIdempotency()
    const options = { scope: 'acme', key: aKey() }
    expect(await run(options, () => 10n)).toBe(10n)
    await expect(run(options, () => 10n)).rejects.toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })

  it.each([
    ['another input', { input: { amount: 2 } }],
    ['another name', { name: 'refund' }],
    ['no input', { input: undefined }],
  ])('refuses the key with %s', async (_, change) => {
    const { run } = createIdempotency()
    const options = { scope: 'acme', key: aKey(), input: { amount: 1 }, name: 'pay' }
    await run(options, () => 1)
    await expect(run({ ...options, ...change }, () => 1)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_KEY_REUSED',
    })
  })

  it.each([
    ['text', 'abc', 'abd'],
    ['bytes', new Uint8Array([1]), new Uint8Array([2])],
    ['text and bytes', 'abc', Buffer.from('abc')],
    ['text and JSON', '{}', {}],
    ['nothing and null', undefined, null],
  ])('tells inputs apart: %s', async (_, one, other) => {
    const { run } = createIdempotency()
    const options = { scope: 'acme', key: aKey() }
    await run({ ...options, input: one }, () => 1)
    await expect(run({ ...options, input: other }, () => 1)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_KEY_REUSED',
    })
  })

  it('refuses an input without a canonical form, and runs nothing', async () => {
    const { run } = createIdempotency()
    const cyclic: { self?: unknown } = {}
    cyclic.self = cyclic
    for (const input of [cyclic, { amount: 1n }])
      await expect(run({ scope: 'acme', key: aKey(), input }, () => 1)).rejects.toMatchObject({
        code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
        statusCode: 500,
      })
  })

  it('answers a duplicate with the first value, where it may wait', async () => {
    const { run } = createIdempotency({ whenBusy: { wait: '10s' } })
    const { opened, open } = gate()
    const started = gate()
    const options = { scope: 'acme', key: aKey() }
    const first = run(options, async () => {
      started.open()
      await opened
      return 'first'
    })
    await started.opened
    const second = run(options, () => 'second')
    open()
    expect(await Promise.all([first, second])).toEqual(['first', 'first'])
  })

  it('finds out how an operation ended that nobody finished', async () => {
    const store = memoryStore()
    const line = disturbed(store)
    const dying = createIdempotency({ store: line.store, lease: '100ms' })
    const options = { scope: 'acme', key: aKey() }
    const { opened, open } = gate()
    const late = dying.run(options, () => opened)
    line.disturb('renew', 'stalls')
    const other = createIdempotency({ store, onUnknown: ({ key }) => ({ outcome: { found: key } }) })
    await expect
      .poll(() => other.run<unknown>(options, () => 'second run').catch(() => undefined))
      .toEqual({ found: options.key })
    open()
    expect(await late).toEqual({ found: options.key })
  })

  it.each([
    [{ scope: 'acme' }, /option "key" must be a string; got nothing/],
    [{ scope: 1, key: 'k' }, /option "scope" must be a string that names the caller; got 1/],
    [{ scope: 'acme', key: 'k', ttl: '1 day' }, /option "ttl" must be a duration .* got "1 day"/],
    [{ scope: 'acme', key: 'k', tll: '1d' }, /there is no option "tll"/],
  ])('refuses the options %o', async (options, message) => {
    const { run } = createIdempotency()
    await expect(run(options as never, () => 1)).rejects.toThrow(message)
  })
})

describe('createIdempotency', () => {
  it.each([
    [{ store: {} }, /option "store" must be a store, such as memoryStore\(\).*; got an object/],
    [{ lease: '50ms' }, /option "lease" must be a duration .* from 100ms to 1d; got "50ms"/],
    [{ maxRun: 'soon' }, /option "maxRun"/],
    [{ storeTimeout: 0 }, /option "storeTimeout"/],
    [{ onUnknown: 'ignore' }, /option "onUnknown" must be 'reject', 'rerun' or a function; got "ignore"/],
    [{ whenBusy: { wait: '2d' } }, /option "whenBusy/],
    [{ onStoreOutage: 'pray' }, /option "onStoreOutage" must be 'reject' or 'run'; got "pray"/],
    [{ replayCache: { entries: 0 } }, /option "replayCache/],
    [{ sweep: '1ms' }, /option "sweep/],
    [{ namespace: 5 }, /option "namespace" must be a string; got 5/],
    [{ scope: 'x' }, /there is no option "scope"/],
    ['fast', /createIdempotency/],
  ])('refuses %o at start', (options, message) => {
    expect(() => createIdempotency(options as never)).toThrow(message)
    expect(() => createIdempotency(options as never)).toThrow(
      expect.objectContaining({ code: 'IDEMPOTENCY_OPTIONS_INVALID' }),
    )
  })

  it('keeps namespaces that share a store apart', async () => {
    const store = memoryStore()
    const options = { scope: 'acme', key: aKey() }
    expect(await createIdempotency({ store, namespace: 'a' }).run(options, () => 'a')).toBe('a')
    expect(await createIdempotency({ store, namespace: 'b' }).run(options, () => 'b')).toBe('b')
  })
})
