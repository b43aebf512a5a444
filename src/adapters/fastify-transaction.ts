import type { FastifyReply, FastifyRequest } from 'fastify'
import { TransactionMisuseError } from '../contract/errors.js'
import type { CapturedAnswer } from '../http/exchange.js'
import type { PlainResponse } from '../http/response-outcome.js'
import { capturePayload } from './fastify-payload.js'
import type { RequestState } from './fastify-request.js'

/** A transaction's answer, with what Fastify is to send for it. */
interface TransactionAnswer extends CapturedAnswer {
  readonly payload: unknown
}

/**
 * Runs `work` in a transaction of the store. With a key, it commits together with its answer: what `work` returns, or
 * sends, with the status and headers that the reply has then. Without one, it is a plain transaction.
 */
export async function runTransaction<T>(
  request: FastifyRequest,
  state: RequestState,
  work: (client: unknown) => Promise<T>,
): Promise<T> {
  const { exchange, reply } = state
  if (exchange === undefined || reply === undefined) return plainTransaction(request, state, work)
  const statusBefore = reply.statusCode
  let answer: TransactionAnswer | undefined
  let value: T
  try {
    value = await exchange.transaction<T>(
      async (client) => {
        // What an attempt that the database refused has said about the answer counts no more.
        reply.code(statusBefore)
        return holdingBack(state, reply, () => work(client))
      },
      async (returned) => {
        answer = await answerOf(reply, returned, state.maxBodyBytes)
        return answer
      },
    )
  } finally {
    // A transaction that was given up may leave its work behind, in the middle of a statement.
    letGo(state, reply)
  }
  if (exchange.committed !== undefined && answer !== undefined)
    sendOnly(request, reply, state, { value, answer })
  return value
}

/** What `saveIn` is to keep, as the reply would send it: by the route's response schema, with the headers it has by now. */
export function capturedResponse(
  reply: FastifyReply,
  { status, headers = {}, body }: PlainResponse,
  maxBodyBytes: number,
): CapturedAnswer {
  const named = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const)
  const { payload, type } = payloadAs(reply, status, body)
  const bytes = typeof payload === 'string' ? Buffer.from(payload) : payload
  return {
    status,
    headers: {
      ...(type !== undefined && { 'content-type': type }),
      ...reply.getHeaders(),
      ...Object.fromEntries(named),
    },
    body: bytes !== undefined && bytes.byteLength > maxBodyBytes ? 'too-long' : bytes,
    isText: typeof payload === 'string',
  }
}

function payloadAs(
  reply: FastifyReply,
  status: number,
  body: unknown,
): { readonly payload: string | Uint8Array | undefined; readonly type?: string } {
  if (body === undefined) return { payload: undefined }
  if (body instanceof Uint8Array) return { payload: body, type: BYTES }
  if (typeof body === 'string') return { payload: body, type: TEXT }
  const { statusCode } = reply
  try {
    return { payload: String(serializer(reply.code(status))(body)), type: JSON_TYPE }
  } finally {
    reply.code(statusCode)
  }
}

const TEXT = 'text/plain; charset=utf-8'
const BYTES = 'application/octet-stream'
const JSON_TYPE = 'application/json; charset=utf-8'

async function plainTransaction<T>(
  request: FastifyRequest,
  state: RequestState,
  work: (client: unknown) => Promise<T>,
): Promise<T> {
  const { reply, guard } = state
  const { engine, policy } = guard
    ? { engine: guard.engine, policy: guard.settings.policy }
    : { engine: request.server.idempotency, policy: request.server.idempotency.policy }
  const ended = await engine.transaction<T>(policy, async (client) => {
    const value = await (reply === undefined ? work(client) : holdingBack(state, reply, () => work(client)))
    const isFailure = reply !== undefined && reply.statusCode >= 400
    return { value, outcome: isFailure ? 'roll-back' : undefined }
  })
  return ended.value
}

/**
 * Runs `work` with a reply that keeps what it is asked to send: it is the answer that commits, and leaves when that is
 * done. The reply must not be awaited meanwhile, or a work that returns it would wait for its own end.
 */
async function holdingBack<T>(state: RequestState, reply: FastifyReply, work: () => Promise<T>): Promise<T> {
  let sent: { readonly payload: unknown } | undefined
  const send = reply.send.bind(reply)
  Object.assign(reply, {
    send(payload: unknown) {
      // Fastify answers in the place of a handler that takes too long. That is not the work's answer, and cannot wait.
      if ((payload as { code?: unknown } | undefined)?.code === 'FST_ERR_HANDLER_TIMEOUT')
        return send(payload)
      sent = { payload }
      return reply
    },
    // biome-ignore lint/suspicious/noThenProperty: it is there already, and is taken away for a while
    then: undefined,
  })
  state.isInTransaction = true
  let value: unknown
  try {
    value = await work()
  } finally {
    letGo(state, reply)
  }
  if (state.hasHandlerEnded) {
    const error = new TransactionMisuseError(
      'transaction() was not awaited: write "return" or "await" before it',
    )
    state.exchange?.misuse(error)
    // What Fastify then wanted to send was held back with the rest, and nobody else will answer; or it waits for this.
    if (state.keeping === undefined) reply.send(error)
    throw error
  }
  if (value === reply) value = undefined
  if (sent !== undefined && value === undefined) value = sent.payload
  if (value instanceof Error) throw value
  return value as T
}

function letGo(state: RequestState, reply: FastifyReply): void {
  if (!state.isInTransaction) return
  state.isInTransaction = false
  // Put back, and not deleted: an object that loses properties is slow from then on.
  const { send, then } = Object.getPrototypeOf(reply) as FastifyReply
  Object.assign(reply, { send, then })
}

async function answerOf(
  reply: FastifyReply,
  value: unknown,
  maxBodyBytes: number,
): Promise<TransactionAnswer> {
  const payload = serialized(reply, value)
  const { body, isText, payload: toSend } = await capturePayload(reply, payload, maxBodyBytes)
  if (body === 'not-ours')
    throw new TransactionMisuseError(`transaction(): this cannot be an answer: ${typeof value}`)
  return { status: reply.statusCode, headers: reply.getHeaders(), body, isText, payload: toSend }
}

/** A value as Fastify would put it on the wire, by the route's response schema, with the content type that it gives. */
function serialized(reply: FastifyReply, value: unknown): unknown {
  if (value === undefined && reply.statusCode === 200)
    throw new TransactionMisuseError(
      'transaction() must return the answer, or send it: what it returns is committed with its effects. Set the status there too, as in reply.code(201)',
    )
  if (value === undefined || value === null) return value
  if (typeof value === 'string') return withType(reply, TEXT, value)
  if (value instanceof Uint8Array) return withType(reply, BYTES, value)
  if (isStreamed(value)) return value
  withType(reply, JSON_TYPE, value)
  return serializer(reply)(value)
}

function withType(reply: FastifyReply, type: string, value: unknown): unknown {
  if (!reply.hasHeader('content-type')) reply.header('content-type', type)
  return value
}

function isStreamed(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  return (
    'pipe' in value || 'getReader' in value || Object.prototype.toString.call(value) === '[object Response]'
  )
}

function serializer(reply: FastifyReply): (value: unknown) => unknown {
  const status = String(reply.statusCode)
  const schemas = reply.routeOptions.schema?.response as Readonly<Record<string, unknown>> | undefined
  const name = [status, `${status[0]}xx`].find((one) => schemas?.[one] !== undefined)
  // A schema of its own for each content type: `serialize` knows only those that hold for all.
  if (name !== undefined && typeof schemas?.[name] === 'object' && 'content' in (schemas[name] as object)) {
    const serialize = reply.getSerializationFunction(name, 'application/json')
    if (serialize !== undefined) return serialize as (value: unknown) => unknown
  }
  return (value) => reply.serialize(value)
}

/** From now on the request has this answer, whatever the handler returns; and it is not serialised a second time. */
function sendOnly<T>(
  request: FastifyRequest,
  reply: FastifyReply,
  state: RequestState,
  committed: { readonly value: T; readonly answer: TransactionAnswer },
): void {
  const { value, answer } = committed
  const { status, payload } = answer
  state.committed = { status, payload }
  reply.serializer((returned: unknown) => {
    if (returned !== value)
      request.log.warn(
        `oncekey: ${request.routeOptions.url}: the answer was committed by transaction(), and is not what the handler or a preSerialization hook made of it afterwards`,
      )
    return typeof payload === 'string' ? payload : ''
  })
}
