import type { FastifyInstance } from 'fastify'

/** Ends a process without leaving an operation in the middle. */
export async function stop(app: FastifyInstance, pool: { end(): Promise<void> }): Promise<void> {
  await app.close() // no new requests; those under way end; outcomes that are still being saved get up to storeTimeout
  await pool.end() // the store never closes your clients, and needs them until here
}
