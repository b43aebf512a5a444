import type { FastifyRequest } from 'fastify'

/** What a client of the examples asks for. */
export interface TransferRequest {
  Body: { readonly from: string; readonly to: string; readonly amount: number }
}

/** Options of a route whose effects are all in one transaction: what stopped in the middle runs again by itself. */
export const ATOMIC = { config: { idempotency: { required: true, atomic: true } } } as const

/** Refuses a transfer for good. Thrown in a transaction it rolls everything back, and is kept as the answer. */
export class InsufficientFunds extends Error {
  override readonly name = 'InsufficientFunds'
  readonly statusCode = 402

  constructor() {
    super('insufficient funds')
  }
}

/** Who the caller is, once you have authenticated it. */
export function caller(request: FastifyRequest): string {
  return String(request.headers['x-account'] ?? '')
}
