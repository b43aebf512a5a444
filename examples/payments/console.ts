import { createHash, randomUUID, timingSafeEqual } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import operatorConsole, { type AuditLogger } from 'oncekey/console'
import idempotency from 'oncekey/fastify'

/** Who may open the demo's console. A service has its own sign-in, and no password in its code. */
export const OPERATOR = { name: 'operator', password: 'demo' } as const

const CREDENTIALS = hashOf(`Basic ${Buffer.from(`${OPERATOR.name}:${OPERATOR.password}`).toString('base64')}`)

/** Writes what operators did to standard output, a line each. A service has a logger that keeps it. */
const STDOUT: AuditLogger = {
  info: (line) => console.log(JSON.stringify(line)),
  warn: (line) => console.log(JSON.stringify(line)),
}

/** Mounts the operator's console at `/console`, behind a password that browsers ask for. */
export async function mountConsole(app: FastifyInstance, logger: AuditLogger = STDOUT): Promise<void> {
  await app.register(async (operators) => {
    operators.addHook('onRequest', async (request, reply) => {
      // Hashes are of one length, and comparing them takes the same time wherever they differ.
      if (timingSafeEqual(hashOf(request.headers.authorization ?? ''), CREDENTIALS)) return
      return reply.code(401).header('www-authenticate', 'Basic realm="operators", charset="UTF-8"').send()
    })
    await operators.register(operatorConsole, {
      prefix: '/console',
      authorize: () => ({ by: OPERATOR.name, mayChange: true }),
      actions: true,
      logger,
    })
  })
}

function hashOf(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}

/** A transfer that nobody knows the end of. */
export interface LostTransfer {
  readonly key: string
  readonly order: { readonly from: string; readonly to: string; readonly amount: number }
}

/**
 * Leaves a transfer of Alice behind, in the store of a bank, as if another process of it had died before the money moved.
 * Nobody but the ledger can say that it did not.
 */
export async function loseTransfer(bank: FastifyInstance): Promise<LostTransfer> {
  const lost = { key: `rent-${randomUUID().slice(0, 8)}`, order: { from: 'alice', to: 'bob', amount: 2500 } }
  const dying = Fastify()
  await dying.register(idempotency, {
    store: bank.idempotency.store,
    scope: () => 'alice',
    lease: '100ms',
    maxRun: '100ms',
  })
  const isRunning = new Promise<void>((resolve) => {
    dying.post('/transfers', () => {
      resolve()
      return new Promise(() => {})
    })
  })
  dying
    .inject({
      method: 'POST',
      url: '/transfers',
      headers: { 'idempotency-key': lost.key },
      payload: lost.order,
    })
    .catch(() => {})
  await isRunning
  await dying.close()
  return lost
}
