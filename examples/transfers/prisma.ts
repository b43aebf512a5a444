import type { FastifyInstance } from 'fastify'
import type { PrismaClient } from './prisma/client/client.js'
import { ATOMIC, InsufficientFunds, type TransferRequest } from './transfer.js'

/** `POST /transfers` with Prisma: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance, prisma: PrismaClient): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) => {
    const { from, to, amount } = request.body
    const transfer = await prisma.$transaction(async (tx) => {
      const taken = await tx.account.updateMany({
        where: { id: from, balance: { gte: amount } },
        data: { balance: { decrement: amount } },
      })
      if (taken.count === 0) throw new InsufficientFunds()
      await tx.account.update({ where: { id: to }, data: { balance: { increment: amount } } })
      const made = await tx.transfer.create({ data: { from, to, amount } })

      await request.idempotency.saveIn(
        (_text, values, strings) => tx.$queryRaw<unknown[]>(strings, ...values),
        {
          status: 201,
          body: made,
        },
      )
      return made
    })
    return reply.code(201).send(transfer)
  })
}
