import { Body, Controller, HttpException, Module, Param, Post, Req } from '@nestjs/common'
import { RouteConfig } from '@nestjs/platform-fastify'
import type { FastifyRequest } from 'fastify'

let payments = 0

@Controller('accounts/:id')
export class PaymentsController {
  @Post('payments')
  @RouteConfig({ idempotency: { required: true, ttl: '7d' } })
  pay(@Param('id') from: string, @Body() { amount }: { amount: number }, @Req() request: FastifyRequest) {
    if (amount > 1000) throw new HttpException('That is more than you have', 402)
    return { id: `p-${++payments}`, from, amount, attempt: request.idempotency.fence }
  }
}

@Module({ controllers: [PaymentsController] })
export class PaymentsModule {}
