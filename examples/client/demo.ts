import { type AddressInfo, connect, createServer } from 'node:net'
import Fastify from 'fastify'
import idempotency from 'oncekey/fastify'
import { pay } from './pay.js'

let payments = 0
const bank = Fastify({ forceCloseConnections: true })
await bank.register(idempotency, { scope: 'shared' })
bank.post('/payments', (_request, reply) => reply.code(201).send({ payment: ++payments }))
await bank.listen({ port: 0 })
const { port } = bank.server.address() as AddressInfo

// A network that loses the first answer: the payment is made, and nobody is told.
let connections = 0
const network = createServer((client) => {
  const upstream = connect(port)
  client.pipe(upstream)
  if (++connections > 1) upstream.pipe(client)
  else upstream.once('data', () => client.destroy())
  client.once('close', () => upstream.destroy())
})
await new Promise<void>((resolve) => network.listen(0, resolve))

const answer = await pay(`http://127.0.0.1:${(network.address() as AddressInfo).port}/payments`, 500)
console.log(`Asked ${connections} times, paid ${payments} time: ${JSON.stringify(answer)}`)

network.close()
await bank.close()
