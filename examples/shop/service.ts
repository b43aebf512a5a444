import type { AddressInfo } from 'node:net'
import { PGlite } from '@electric-sql/pglite'
import type { FastifyInstance } from 'fastify'
import { buildGateway } from './gateway.js'
import { buildInventory } from './inventory.js'
import { buildOrders } from './orders.js'
import { buildPayments } from './payments.js'

/** The services, in the order in which an order comes by. */
export const SERVICES = ['gateway', 'orders', 'payments', 'inventory'] as const

/** The name of a service. */
export type ServiceName = (typeof SERVICES)[number]

/** How a service is started: the first argument of its process, as JSON. */
export interface ServiceOptions {
  readonly name: ServiceName
  /** Where its database lives. It outlives the process. */
  readonly folder: string
  /** Where the other services are. */
  readonly urls: Readonly<Record<ServiceName, string>>
  /** What its derived keys are made with: the same after a restart. In real life, a secret of the service's environment. */
  readonly secret: string
  /** Whether it heeds keys at all. Without, it is what most services are: ready to do everything twice. */
  readonly heedsKeys: boolean
  /** The basket in the middle of which the process dies. */
  readonly diesAt: string | undefined
}

/** What every service is built with. */
export interface ServiceParts extends Pick<ServiceOptions, 'urls' | 'secret' | 'heedsKeys'> {
  /** Kills this process if it is to die at this basket: no goodbye, no answer, nothing more is written. */
  dieAt(basket: string): void
}

/** What a customer wants to buy. Every service is told which basket its work is for. */
export interface Basket {
  readonly basket: string
  readonly item: string
  /** In cents. */
  readonly price: number
}

async function build({ name, folder, diesAt, ...rest }: ServiceOptions): Promise<FastifyInstance> {
  const parts: ServiceParts = {
    ...rest,
    dieAt(basket) {
      if (basket === diesAt) process.kill(process.pid, 'SIGKILL')
    },
  }
  if (name === 'gateway') return buildGateway(parts)
  const db = await PGlite.create(folder)
  if (name === 'orders') return buildOrders(db, parts)
  if (name === 'payments') return buildPayments(db, parts)
  return buildInventory(db, parts)
}

/** Serves until whoever started it is gone, and says on which port. */
async function serve(options: ServiceOptions): Promise<void> {
  process.once('disconnect', () => process.exit())
  const app = await build(options)
  await app.listen({ port: 0, host: '127.0.0.1' })
  process.send?.((app.server.address() as AddressInfo).port)
}

// Others import what is declared above; only a process that was started for a service runs one.
if (process.send !== undefined) await serve(JSON.parse(process.argv[2] ?? '{}') as ServiceOptions)
