import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { text } from 'node:stream/consumers'
import { setTimeout as pause } from 'node:timers/promises'
import type { Pool } from 'pg'
import type { Mode } from './modes.js'
import type { Random } from './random.js'

/** What a charge is asked for with. */
interface ChargeRequest {
  /** The key that came in, to count by: the provider itself goes by its own key only. */
  readonly for: string
  readonly mode: Mode
  readonly fence: number
  readonly server: string
}

/** A downstream service that charges once for every `Idempotency-Key`, as payment providers do. */
export interface Provider {
  readonly url: string
  close(): Promise<void>
}

/** Starts the provider. Its charges are rows of `charges`, every call of it a row of `charge_calls`. */
export async function startProvider(pool: Pool, random: Random): Promise<Provider> {
  const server = createServer((request, response) => {
    charge(request, response).catch((error: unknown) => {
      console.error('the provider failed', error)
      response.writeHead(500).end()
    })
  })

  async function charge(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const key = request.headers['idempotency-key']
    const { for: operation, mode, fence, server: caller } = JSON.parse(await text(request)) as ChargeRequest
    await pool.query(
      'insert into charge_calls (derived_key, key, mode, fence, server) values ($1, $2, $3, $4, $5)',
      [key, operation, mode, fence, caller],
    )
    await pause(random.between(0, 10))
    const { rows } = await pool.query(
      `with made as (
        insert into charges (derived_key, key, mode) values ($1, $2, $3) on conflict do nothing returning id
      )
      select id from made union all select id from charges where derived_key = $1`,
      [key, operation, mode],
    )
    await pause(random.between(0, 10))
    const { id } = rows[0] as { readonly id: string }
    response.writeHead(201, { 'content-type': 'application/json' }).end(JSON.stringify({ charge: id }))
  }

  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('The provider has no port')
  return {
    url: `http://127.0.0.1:${address.port}`,
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
