import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { createInterface } from 'node:readline'
import { describe, expect, it } from 'vitest'

const PROGRAM = new URL('../../.build/examples/payments/demo.js', import.meta.url)

interface Demo {
  readonly url: string
  readonly lines: readonly string[]
  stop(): Promise<number | null>
}

async function startDemo(): Promise<Demo> {
  const child = spawn(process.execPath, [PROGRAM.pathname], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, PORT: '0' },
  })
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve))
  const lines: string[] = []
  for await (const line of createInterface(child.stdout)) {
    lines.push(line)
    if (line.startsWith('Stop it')) break
  }
  const url = lines[0]?.match(/http:\/\/[\d.:]+\d/)?.[0] ?? expect.fail(lines.join('\n'))
  return {
    url,
    lines,
    stop() {
      child.kill('SIGTERM')
      return exited
    },
  }
}

describe('examples/payments', () => {
  it('tells its story, then answers requests as the README says, and stops when asked', async () => {
    const demo = await startDemo()
    const told = demo.lines.join('\n')
    expect(told).toContain('201 {"id":1,"from":"alice","to":"bob","amount":500}')
    expect(told).toContain('201, Idempotent-Replayed: true {"id":1,"from":"alice","to":"bob","amount":500}')
    expect(told).toContain('IDEMPOTENCY_KEY_REUSED')
    expect(told).toContain('IDEMPOTENCY_KEY_MISSING')
    expect(told).toContain('[{"id":"alice","balance":9400},{"id":"bob","balance":10600}]')

    const transfer = async (key: string | undefined, amount: number) => {
      const answer = await fetch(`${demo.url}/transfers`, {
        method: 'POST',
        headers: {
          authorization: 'Bearer alice',
          'content-type': 'application/json',
          ...(key !== undefined && { 'idempotency-key': key }),
        },
        body: JSON.stringify({ from: 'alice', to: 'bob', amount }),
      })
      return {
        status: answer.status,
        replayed: answer.headers.get('idempotent-replayed'),
        body: await answer.json(),
      }
    }
    const key = randomUUID()
    const first = await transfer(key, 300)
    expect(first).toMatchObject({ status: 201, replayed: null })
    expect(await transfer(key, 300)).toEqual({ ...first, replayed: 'true' })
    expect(await transfer(key, 301)).toMatchObject({ status: 422 })
    expect(await transfer(undefined, 300)).toMatchObject({ status: 400 })
    const twice = await Promise.all([transfer(`${key}-2`, 100), transfer(`${key}-2`, 100)])
    expect(twice.map(({ status }) => status).every((status) => status === 201 || status === 409)).toBe(true)
    const poor = await transfer(`${key}-3`, 1_000_000)
    expect(poor).toMatchObject({ status: 402, body: { error: 'insufficient funds' } })
    expect(await transfer(`${key}-3`, 1_000_000)).toEqual({ ...poor, replayed: 'true' })
    const accounts = await fetch(`${demo.url}/accounts`, { headers: { authorization: 'Bearer alice' } })
    expect(await accounts.json()).toEqual([
      { id: 'alice', balance: 9000 },
      { id: 'bob', balance: 11000 },
    ])
    for (const path of ['/', '/page/page.js', '/oncekey/client/create-fetch.js'])
      expect((await fetch(`${demo.url}${path}`)).status).toBe(200)
    const metrics = await fetch(`${demo.url}/metrics`)
    expect(metrics.headers.get('content-type')).toContain('text/plain')
    const text = await metrics.text()
    expect(text).toContain('oncekey_requests_total{route="POST /transfers",outcome="run"} 5\n')
    expect(text).toContain('oncekey_requests_total{route="POST /transfers",outcome="mismatch"} 2\n')
    expect(text).toContain(
      'oncekey_completions_total{route="POST /transfers",result="failed",status="4xx"} 1\n',
    )
    expect(text).toContain('oncekey_live_claims{route="POST /transfers"} 0\n')
    expect(await demo.stop()).toBe(0)
  })
})
