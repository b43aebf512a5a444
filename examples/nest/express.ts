import 'reflect-metadata'
import { Body, Controller, type MiddlewareConsumer, Module, type NestModule, Post, Req } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import type { NestExpressApplication } from '@nestjs/platform-express'
import type { Request } from 'express'
import { memoryStore } from 'oncekey'
import { idempotency } from 'oncekey/express'
import { NothingHappenedFilter } from './nothing-happened.js'

export const once = idempotency({
  store: memoryStore(), // one of a server, as soon as there are two processes
  scope: (req) => String(req.headers['x-account'] ?? ''), // who the caller is: guards come too late
})

let refunds = 0

@Controller('refunds')
class RefundsController {
  @Post()
  refund(@Body() { amount }: { amount: number }, @Req() request: Request) {
    return { id: `r-${++refunds}`, amount, attempt: request.idempotency.fence }
  }
}

@Module({ controllers: [RefundsController] })
export class RefundsModule implements NestModule {
  configure(consumer: MiddlewareConsumer) {
    consumer.apply(once({ required: true, ttl: '7d' })).forRoutes(RefundsController)
  }
}

/** A Nest application on Express. Its modules say which of their routes are safe to retry. */
export async function aBank(module: new () => NestModule): Promise<NestExpressApplication> {
  const app = await NestFactory.create<NestExpressApplication>(module, { logger: ['fatal'] })
  app.useGlobalFilters(new NothingHappenedFilter())
  return app
}
