import 'reflect-metadata'
import type { Type } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify'
import { memoryStore } from 'oncekey'
import idempotency from 'oncekey/fastify'
import { NothingHappenedFilter } from './nothing-happened.js'

/** A Nest application on Fastify whose routes are safe to retry. */
export async function aBank(module: Type): Promise<NestFastifyApplication> {
  const app = await NestFactory.create<NestFastifyApplication>(module, new FastifyAdapter(), {
    logger: ['fatal'],
  })
  // Before `init` or `listen`, which add the routes.
  await app
    .getHttpAdapter()
    .getInstance()
    .register(idempotency, {
      store: memoryStore(), // one of a server, as soon as there are two processes
      scope: (request) => String(request.headers['x-account'] ?? ''), // who the caller is: guards come too late
    })
  app.useGlobalFilters(new NothingHappenedFilter())
  return app
}
