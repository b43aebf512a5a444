import type { FastifyInstance } from 'fastify'

/** Ends a process without leaving an operation in the middle. */
export async function stop(app: FastifyInstance, pool: { end(): Promise<void> }): Promise<void> {
  // Otherwise a connection that was busy is kept open for another request, for 72 seconds.
  app.server.keepAliveTimeout = 1
  // No new requests; those under way end; outcomes that are still being saved get up to storeTimeout.
  await app.close()
  // The store never closes your clients, and needs them until here.
  await pool.end()
}
