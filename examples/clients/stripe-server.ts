import formbody from '@fastify/formbody'
import type { FastifyInstance } from 'fastify'
import idempotency, { type Problem, type ProblemReply } from 'oncekey/fastify'

/** Prepares an application for Stripe's clients. They send forms, and look for `error` in an answer that is none. */
export async function prepareForStripe(app: FastifyInstance): Promise<void> {
  await app.register(formbody)
  await app.register(idempotency, {
    scope: (request) => String(request.headers.authorization), // once you have checked it
    onProblem: withStripeError,
  })
}

function withStripeError(problem: Problem): Partial<ProblemReply> {
  // Stripe's own status for it, by which its clients choose the class of the error.
  const status = problem.code === 'IDEMPOTENCY_KEY_REUSED' ? 400 : problem.status
  const error = { type: 'idempotency_error', code: problem.code, message: problem.detail }
  return { status, body: JSON.stringify({ ...problem, status, error }) }
}
