import { afterEach, describe, expect, it } from 'vitest'
import { aConsoleWorld, type ConsoleWorld, change } from '../support/console-world.js'
import { aKey } from '../support/fastify-app.js'

const worlds: ConsoleWorld[] = []
afterEach(async () => {
  await Promise.all(worlds.splice(0).map((world) => world.close()))
})

async function aWorld(...given: Parameters<typeof aConsoleWorld>): Promise<ConsoleWorld> {
  const world = await aConsoleWorld(...given)
  worlds.push(world)
  return world
}

describe('settling', () => {
  it('asks once more, says what will happen, and gives retries the answer byte for byte', async () => {
    const world = await aWorld()
    const key = aKey()
    const id = await world.orphan(key)
    expect(await world.pay(key)).toMatchObject({ status: 409, code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' })
    const body = '{"id": 12345678901234567890, "note": "<b>\'é\'</b>"}'
    const { question, result } = await change(world, id, 'settle', { status: '201', answer: 'json', body })
    expect(question.text).toContain('Retries of the same request get HTTP 201 with this body')
    expect(question.text).toContain('&#60;b&#62;')
    expect(result).toMatchObject({ status: 200 })
    const retried = await world.pay(key)
    expect(retried).toMatchObject({ status: 201, isReplay: true })
    expect(retried.bytes.toString()).toBe(body)
    expect(retried.headers['content-type']).toBe('application/json; charset=utf-8')
    expect(world.payments).toEqual([])
    expect(world.audit).toMatchObject([
      { event: 'settling', id, by: 'ann', status: 201 },
      { event: 'settled', id, by: 'ann', route: 'POST /payments', fence: 1, status: 201 },
    ])
    expect(JSON.stringify(world.audit)).not.toContain(key)
  })

  it('changes nothing before the page that asks is answered', async () => {
    const world = await aWorld()
    const id = await world.orphan(aKey())
    const record = await world.get(`/console/records/${id}`)
    const fields = { ...record.hidden('settle'), status: '201', answer: 'empty' }
    const asked = await world.post(`/console/records/${id}/settle`, fields)
    expect(asked.text).toContain('What will happen')
    expect(await world.store.find(id)).toMatchObject({ status: 'unknown' })
    expect(world.audit).toEqual([])
  })

  it('does only what the page that asked has shown', async () => {
    const world = await aWorld()
    const id = await world.orphan(aKey())
    const record = await world.get(`/console/records/${id}`)
    const path = `/console/records/${id}/settle`
    const asked = await world.post(path, {
      ...record.hidden('settle'),
      status: '201',
      answer: 'json',
      body: '1',
    })
    const confirmed = asked.hidden('settle')
    for (const other of [{ body: '2' }, { status: '200' }, { answer: 'text' }, { fence: '2' }, { seen: '1' }])
      expect(await world.post(path, { ...confirmed, ...other })).toMatchObject({ status: 403 })
    expect(await world.post(`/console/records/${id}/release`, confirmed)).toMatchObject({ status: 403 })
    const another = await world.orphan(aKey())
    expect(await world.post(`/console/records/${another}/settle`, confirmed)).toMatchObject({ status: 403 })
    expect(await world.store.find(id)).toMatchObject({ status: 'unknown' })
    expect(await world.store.find(another)).toMatchObject({ status: 'unknown' })
    expect(await world.post(path, confirmed)).toMatchObject({ status: 200 })
  })

  it('keeps a tombstone where the answer is not known', async () => {
    const world = await aWorld()
    const key = aKey()
    const { result } = await change(world, await world.orphan(key), 'settle', {
      status: '201',
      answer: 'tombstone',
    })
    expect(result.status).toBe(200)
    const retried = await world.pay(key)
    expect(retried).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(JSON.parse(retried.bytes.toString())).toMatchObject({ originalStatus: 201 })
    expect(world.payments).toEqual([])
  })

  it('keeps text, and an answer without a body', async () => {
    const world = await aWorld()
    const text = aKey()
    await change(world, await world.orphan(text), 'settle', {
      status: '202',
      answer: 'text',
      body: 'so\r\nbe it',
    })
    const answered = await world.pay(text)
    expect(answered.bytes.toString()).toBe('so\nbe it')
    expect(answered.headers['content-type']).toBe('text/plain; charset=utf-8')
    const empty = aKey()
    await change(world, await world.orphan(empty), 'settle', { status: '204', answer: 'empty' })
    expect(await world.pay(empty)).toMatchObject({ status: 204, isReplay: true })
  })

  it.each([
    [{ status: '99', answer: 'json', body: '{}' }, 'The status must be a number'],
    [{ status: '600', answer: 'json', body: '{}' }, 'The status must be a number'],
    [{ status: '100', answer: 'empty' }, 'The status must be a number'],
    [{ status: '201', answer: 'json', body: '{"id": }' }, 'The body is not JSON'],
    [{ status: '201', answer: 'json', body: '' }, 'The body is not JSON'],
    [{ status: '204', answer: 'json', body: '{}' }, 'An answer with status 204 has no body'],
  ])('refuses %j, says why, and keeps what was written', async (fields, sentence) => {
    const world = await aWorld()
    const id = await world.orphan(aKey())
    const record = await world.get(`/console/records/${id}`)
    const again = await world.post(`/console/records/${id}/settle`, { ...record.hidden('settle'), ...fields })
    expect(again.status).toBe(422)
    expect(again.text).toContain(sentence)
    expect(again.text).toContain(`value="${fields.status}"`)
    expect(again.text).not.toContain('name="confirm"')
  })
})

describe('releasing', () => {
  it('says that a retry will run it again, and then one does, as the first of its key', async () => {
    const world = await aWorld()
    const key = aKey()
    const id = await world.orphan(key)
    const { question, result } = await change(world, id, 'release')
    expect(question.text).toContain('a retry will run it again')
    expect(result).toMatchObject({ status: 200 })
    expect(world.audit).toMatchObject([
      { event: 'releasing', id, by: 'ann' },
      { event: 'released', id, by: 'ann' },
    ])
    expect(await world.pay(key)).toMatchObject({ status: 201, isReplay: false })
    expect(await world.pay(key)).toMatchObject({ status: 201, isReplay: true })
    expect(world.payments).toEqual([key])
    expect(await world.store.find(id)).toMatchObject({ fence: 1, status: 'completed' })
  })

  it('is not repeated by a form that was sent before, though the key is unknown again', async () => {
    const world = await aWorld()
    const key = aKey()
    const id = await world.orphan(key)
    const path = `/console/records/${id}/release`
    const asked = await world.post(path, (await world.get(`/console/records/${id}`)).hidden('release'))
    const confirmed = asked.hidden('release')
    expect(await world.post(path, confirmed)).toMatchObject({ status: 200 })
    await world.orphan(key)
    const again = await world.post(path, confirmed)
    expect(again).toMatchObject({ status: 409 })
    expect(again.text).toContain('claimed again after you opened this page')
    expect(await world.store.find(id)).toMatchObject({ status: 'unknown' })
  })
})

describe('a record that is not unknown any more', () => {
  it('is left as it is, and the page tells what it is now', async () => {
    const world = await aWorld()
    const key = aKey()
    const id = await world.orphan(key)
    const path = `/console/records/${id}/release`
    const seen = (await world.get(`/console/records/${id}`)).hidden('release')
    const asked = (await world.post(path, seen)).hidden('release')
    await change(world, id, 'settle', { status: '201', answer: 'json', body: '{}' })
    for (const fields of [seen, asked]) {
      const refused = await world.post(path, fields)
      expect(refused).toMatchObject({ status: 409 })
      expect(refused.text).toContain('has an outcome by now')
    }
    expect(await world.pay(key)).toMatchObject({ status: 201, isReplay: true })
    expect(world.audit.map(({ event }) => event)).toEqual(['settling', 'settled'])
  })

  it('has no forms', async () => {
    const world = await aWorld()
    const key = aKey()
    await world.pay(key)
    const found = await world.post('/console/search', { key, scope: 'acme' })
    const record = await world.get(`/console/${String(found.headers.location)}`)
    expect(record.status).toBe(200)
    expect(record.text).not.toContain('/settle"')
    expect(record.text).not.toContain('/release"')
  })
})

describe('a record of a function', () => {
  it('can be released and not settled', async () => {
    const world = await aWorld()
    const meta = { key: 'k', route: 'message ledger', scope: 's', firstSeenAt: 1000 }
    await world.store.claim({
      ...{ id: 'of-a-function', token: 't', fingerprint: 'f', leaseMs: 0, ttlMs: 60_000 },
      ...{ takeOver: false, mayBeLost: false, meta },
    })
    const record = await world.get('/console/records/of-a-function')
    expect(record.text).not.toContain('/settle"')
    const path = '/console/records/of-a-function/settle'
    const refused = await world.post(path, { fence: '1', seen: '1000', status: '200', answer: 'empty' })
    expect(refused).toMatchObject({ status: 409 })
    expect(await change(world, 'of-a-function', 'release')).toMatchObject({ result: { status: 200 } })
  })
})

describe('who may not change anything', () => {
  it('sees no forms, and is refused', async () => {
    const world = await aWorld()
    const id = await world.orphan(aKey())
    const seen = (await world.get(`/console/records/${id}`)).hidden('release')
    const record = await world.get(`/console/records/${id}`, { 'x-operator': 'bob' })
    expect(record.text).toContain('not settle or release')
    expect(record.text).not.toContain('/release"')
    const path = `/console/records/${id}/release`
    const asked = await world.post(path, seen)
    for (const fields of [seen, asked.hidden('release')])
      expect(await world.post(path, fields, { 'x-operator': 'bob' })).toMatchObject({ status: 403 })
    expect(await world.store.find(id)).toMatchObject({ status: 'unknown' })
  })

  it('is everybody, unless the console has actions', async () => {
    const world = await aWorld({ actions: false })
    const id = await world.orphan(aKey())
    const record = await world.get(`/console/records/${id}`)
    expect(record.text).toContain('This console only shows')
    const { fence, meta } = (await world.store.find(id)) ?? expect.fail()
    const fields = { fence: String(fence), seen: String(meta.firstSeenAt) }
    expect(await world.post(`/console/records/${id}/release`, fields)).toMatchObject({ status: 403 })
    expect(await world.store.find(id)).toMatchObject({ status: 'unknown' })
  })
})
