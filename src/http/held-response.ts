import {
  type OutgoingHttpHeader,
  type OutgoingHttpHeaders,
  type ServerResponse,
  validateHeaderValue,
} from 'node:http'
import { finished, Readable } from 'node:stream'
import { asBuffer } from '../contract/as-buffer.js'
import { TransactionMisuseError } from '../contract/errors.js'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { CapturedAnswer } from './exchange.js'
import type { GivenAnswer } from './given-answer.js'
import type { AnswerHeaders, HeaderFilter } from './kept-headers.js'

/** Who decides about what a response holds back. */
export interface HoldOptions {
  /** The longest body that is kept. An answer that grows past it goes on as it is written. */
  readonly maxBodyBytes: number
  /** Which headers belong to an answer, and leave with it when another takes its place. */
  readonly keptHeaders: HeaderFilter
  /** Tells what was captured. @returns what the client gets in its place, if anything. */
  readonly end: (captured: CapturedAnswer) => MaybePromise<GivenAnswer | undefined>
  /** Tells that the handler gave its answer up in the middle. */
  readonly broken: (status: number) => Promise<void>
  /** Told of an answer after the answer, which nobody gets. */
  readonly ignored?: () => void
  /** The headers from before the handler, which stay when an answer of somebody else takes its place. */
  readonly earlierHeaders?: OutgoingHttpHeaders | undefined
}

/** A response that keeps what is written to it until it was told what becomes of it. */
export interface HeldResponse {
  /** Whether the answer is that of a work, and waits for it. */
  readonly isWorking: boolean
  /**
   * From now on what is written is the answer of a work in a transaction: it is not told, and does not leave. Called
   * again, it begins anew: what an earlier attempt said counts no more.
   *
   * @throws {TransactionMisuseError} when the handler has answered already.
   */
  beginWork(): void
  /** What the work has answered by now: all of it, a part, or nothing. */
  workAnswer(): CapturedAnswer | 'unfinished' | undefined
  /** The work is over, and has not answered. What it said is forgotten where it failed: the handler answers as before it. */
  endWork(how: 'failed' | 'silent'): void
  /** The answer of the work leaves now. What is said afterwards is ignored. */
  sendWork(): void
  /** Tells the answer of the work, lets it go, and ignores what is said afterwards. */
  tellWork(): void
}

const HOLD: unique symbol = Symbol('oncekey.hold')

type Holding = ServerResponse & { [HOLD]?: Hold | undefined }
type Callback = (error?: Error | null) => void

/**
 * Holds back what is written to `res` until `end` has told that the answer is kept, then lets it go: headers, body and
 * all. An answer that grows past `maxBodyBytes`, that flushes its headers, or that is a stream of events is meant to be
 * read while it grows: it goes on as it is written, once its tombstone is kept. That the client leaves is kept from the
 * handler meanwhile, since its answer is wanted all the same.
 */
export function holdResponse(res: ServerResponse, options: HoldOptions): HeldResponse {
  const held = (res as Holding)[HOLD]
  if (held !== undefined) return held
  const hold = new Hold(res, options)
  ;(res as Holding)[HOLD] = hold
  // One by one, here and where they are put back: by names that stand in the code it takes a fifth of the time.
  res.writeHead = HELD_METHODS.writeHead as ServerResponse['writeHead']
  res.write = HELD_METHODS.write as ServerResponse['write']
  res.end = HELD_METHODS.end as ServerResponse['end']
  res.flushHeaders = HELD_METHODS.flushHeaders
  res.destroy = HELD_METHODS.destroy as ServerResponse['destroy']
  res.emit = HELD_METHODS.emit
  const { flush } = res as { readonly flush?: () => void }
  if (flush !== undefined) Object.assign(res, { flush: () => hold.flush(() => flush.call(res)) })
  if (res.closed) hold.leave({ owesClose: false })
  return hold
}

/** What a response says about itself before its body. */
interface ResponseHead {
  readonly status: number
  readonly message: string
  readonly headers: OutgoingHttpHeaders
}

/** How much a writer may write ahead while the store is told. Past it, whichever stream lies below makes it wait. */
const WRITE_AHEAD_BYTES = 64 * 1024

class Hold implements HeldResponse {
  readonly #res: ServerResponse
  readonly #options: HoldOptions
  /** What lies below: the response itself, or what other middleware made of it. */
  readonly below: Pick<ServerResponse, 'writeHead' | 'write' | 'end' | 'flushHeaders' | 'destroy' | 'emit'>
  #mode: 'holding' | 'telling' | 'passing' = 'holding'
  #chunks: Buffer[] = []
  #bytes = 0
  /** The head when the answer began. */
  #head: ResponseHead | undefined
  /** The head before the work. */
  #headBefore: ResponseHead | undefined
  #isWorking = false
  #mutes = false
  #hasEnded = false
  #isBroken = false
  #owesDrain = false
  #owedFlush: (() => void) | undefined
  #hasLeft = false
  #owesClose = false
  #socket: ServerResponse['socket'] = null

  constructor(res: ServerResponse, options: HoldOptions) {
    this.#res = res
    this.#options = options
    const { writeHead, write, end, flushHeaders, destroy, emit } = res
    this.below = { writeHead, write, end, flushHeaders, destroy, emit }
  }

  get isHolding(): boolean {
    return this.#mode !== 'passing'
  }

  get isWorking(): boolean {
    return this.#isWorking
  }

  beginWork(): void {
    if (!this.#isWorking && (this.#mode !== 'holding' || this.#hasEnded))
      throw new TransactionMisuseError('transaction() was called after the answer was sent')
    this.#headBefore ??= headOf(this.#res)
    this.#startOver()
    this.#isWorking = true
  }

  workAnswer(): CapturedAnswer | 'unfinished' | undefined {
    if (this.#hasEnded) return this.#captured()
    return this.#bytes > 0 ? 'unfinished' : undefined
  }

  endWork(how: 'failed' | 'silent'): void {
    this.#isWorking = false
    if (how === 'failed') this.#startOver()
  }

  sendWork(): void {
    this.#isWorking = false
    this.#mutes = true
    this.#letGo(undefined)
  }

  tellWork(): void {
    this.#isWorking = false
    this.#mutes = true
    this.#tell(this.#captured())
  }

  #startOver(): void {
    this.#chunks = []
    this.#bytes = 0
    this.#hasEnded = false
    this.#head = undefined
    if (this.#headBefore !== undefined) putHead(this.#res, this.#headBefore)
  }

  writeHead(status: number, rest: readonly unknown[]): void {
    const res = this.#res
    res.statusCode = status
    if (typeof rest[0] === 'string') res.statusMessage = rest[0]
    const headers = rest.at(-1)
    if (typeof headers === 'object' && headers !== null)
      setHeaders(res, headers as OutgoingHttpHeaders | OutgoingHttpHeader[])
  }

  write(chunk: unknown, encoding: BufferEncoding | undefined): boolean {
    // What still comes after the end belongs to no answer. Its writer is not made to wait.
    if (this.#hasEnded) return true
    this.#hold(chunk, encoding, true)
    const isFull = this.#mode === 'telling' && this.#bytes >= WRITE_AHEAD_BYTES
    this.#owesDrain ||= isFull
    return !isFull
  }

  end(chunk: unknown, encoding: BufferEncoding | undefined): void {
    if (this.#hasEnded) return
    if (chunk === undefined || chunk === null) this.#begin()
    else this.#hold(chunk, encoding, false)
    this.#hasEnded = true
    if (this.#mode === 'holding' && !this.#isWorking) this.#tell(this.#captured())
  }

  flushHeaders(): void {
    if (this.#hasEnded) return
    if (this.#isWorking)
      throw new TransactionMisuseError(
        'transaction(): a reply that leaves by itself cannot commit with its effects',
      )
    this.#begin()
    if (this.#mode === 'holding') this.#tell({ ...this.#captured(), body: 'too-long' })
  }

  /** Of `compression`: what it has gathered shall leave. While it has none of the answer, that is for later. */
  flush(below: () => void): void {
    if (this.isHolding) this.#owedFlush = below
    else below()
  }

  /** The handler gives its answer up. What was begun is not an answer; that there was one is worth a tombstone. */
  giveUp(): void {
    if (this.#mode !== 'holding' || this.#hasEnded || this.#isWorking) return
    this.#mode = 'telling'
    this.#isBroken = true
    const { statusCode } = this.#res
    this.#startOver()
    this.#options.broken(statusCode).then(
      () => this.#letGo(undefined),
      (error: Error) => this.below.destroy.call(this.#res, error),
    )
  }

  /** The client is gone, which is the handler's business no more than where the answer goes. */
  leave({ owesClose }: { readonly owesClose: boolean }): void {
    const res = this.#res
    this.#hasLeft = true
    this.#owesClose = owesClose
    this.#socket = res.socket
    res.destroyed = false
    // Some look here for whether anybody listens, and give nothing where nobody does.
    Object.assign(res, { socket: null })
    Object.defineProperty(res, 'closed', { value: false, configurable: true })
  }

  /** A source that breaks without a word would leave the answer without an end for ever. */
  watch(source: unknown): void {
    if (!(source instanceof Readable)) return
    finished(source, { writable: false }, (error) => {
      // Whoever listens for its error may answer in its place, and does so before this.
      if (error) setImmediate(() => this.giveUp())
    })
  }

  #begin(): void {
    const res = this.#res
    // Others may want to know that the head is there: Node would call this too, and they may add to it.
    if (this.#head === undefined && res.writeHead !== HELD_METHODS.writeHead) res.writeHead(res.statusCode)
    // In the middle of an answer nobody says another status, unless it is another answer: that of an error handler.
    if (this.#head !== undefined && this.#mode === 'holding' && this.#head.status !== res.statusCode) {
      this.#head = undefined
      this.#chunks = []
      this.#bytes = 0
    }
    this.#head ??= sendableHeadOf(res)
  }

  #hold(chunk: unknown, encoding: BufferEncoding | undefined, isReused: boolean): void {
    const bytes = bytesOf(chunk, encoding, isReused)
    this.#begin()
    this.#chunks.push(bytes)
    this.#bytes += bytes.byteLength
    if (this.#mode !== 'holding' || this.#isWorking) return
    const isEvents = String(this.#res.getHeader('content-type')).startsWith('text/event-stream')
    if (this.#bytes > this.#options.maxBodyBytes || isEvents)
      this.#tell({ ...this.#captured(), body: 'too-long' })
  }

  #captured(): CapturedAnswer {
    const { status, headers } = this.#head ?? headOf(this.#res)
    const hasBody = this.#bytes > 0 && mayHaveBody(status) && this.#res.req?.method !== 'HEAD'
    const body = hasBody ? this.#body() : undefined
    const isTooLong = body !== undefined && body.byteLength > this.#options.maxBodyBytes
    return {
      status,
      headers: this.#withTakenAway(headers as AnswerHeaders),
      body: isTooLong ? 'too-long' : body,
      isText: false,
    }
  }

  /** Names what was there before the handler, and is not any more: without a value, so that no replay has it either. */
  #withTakenAway(headers: AnswerHeaders): AnswerHeaders {
    const { earlierHeaders } = this.#options
    let takenAway: Record<string, readonly string[]> | undefined
    for (const name in earlierHeaders)
      if (headers[name] === undefined) {
        takenAway ??= {}
        takenAway[name] = []
      }
    return takenAway === undefined ? headers : { ...takenAway, ...headers }
  }

  #body(): Buffer {
    const [first] = this.#chunks
    if (this.#chunks.length === 1 && first !== undefined) return first
    const body = Buffer.concat(this.#chunks)
    this.#chunks = [body]
    return body
  }

  #tell(answer: CapturedAnswer): void {
    this.#mode = 'telling'
    let given: MaybePromise<GivenAnswer | undefined>
    try {
      given = this.#options.end(answer)
    } catch (error) {
      given = Promise.reject(error)
    }
    if (isPromise(given))
      given.then(
        (found) => this.#letGoOrCut(found),
        (error: Error) => this.#cut(error),
      )
    // A handler that fails right after its answer does so before the answer leaves, however fast the store was.
    else process.nextTick(() => this.#letGoOrCut(given))
  }

  #letGoOrCut(given: GivenAnswer | undefined): void {
    try {
      this.#letGo(given)
    } catch (error) {
      // Of what others do to the head when it leaves.
      this.#cut(error as Error)
    }
  }

  /** There is nobody left who could be told, and the process lives on. */
  #cut(error: Error): void {
    this.#pass()
    this.below.destroy.call(this.#res, error)
  }

  #letGo(given: GivenAnswer | undefined): void {
    const res = this.#res
    this.#pass()
    if (this.#hasLeft) this.#tellOfLeaving()
    else if (given !== undefined) this.#replaceBy(given)
    else this.#sendHeld()
    if (this.#mutes) this.#mute(res.statusCode, given?.body ?? this.#body())
    this.#chunks = []
  }

  #sendHeld(): void {
    const res = this.#res
    const { below } = this
    const body = this.#body()
    // What an error handler has made of the head, after the answer had ended, is not a part of it.
    if (this.#head !== undefined && !hasHead(res, this.#head)) putHead(res, this.#head)
    if (this.#hasEnded) {
      if (body.byteLength > 0) below.end.call(res, body, 'utf8')
      else (below.end as () => void).call(res)
      return
    }
    if (!this.#isBroken) below.flushHeaders.call(res)
    const flows =
      body.byteLength === 0 ||
      (below.write as (this: ServerResponse, bytes: Buffer) => boolean).call(res, body)
    this.#owedFlush?.()
    // A stream below that is full says itself when it is not.
    if (this.#owesDrain && flows) res.emit('drain')
  }

  #replaceBy(given: GivenAnswer): void {
    const res = this.#res
    // An answer that this request has kept itself goes with the headers that belong to the exchange.
    const isOwn = !given.replayed && given.error === undefined
    const { keptHeaders, earlierHeaders = {} } = this.#options
    const names = isOwn
      ? keptHeaders(res.getHeaders() as AnswerHeaders).map(([name]) => name)
      : res.getHeaderNames()
    for (const name of names) res.removeHeader(name)
    if (!isOwn) putHeaders(res, earlierHeaders)
    putAnswer(res, given)
    endWith(res, given, (bytes) =>
      bytes === undefined
        ? (this.below.end as () => void).call(res)
        : this.below.end.call(res, bytes, 'utf8'),
    )
    if (this.#hasEnded || this.#mutes) return
    // What the handler still writes belongs to an answer that nobody gets.
    Object.assign(res, {
      write: swallow,
      end: (...given: unknown[]) => {
        callBack(given)
        return res
      },
    })
  }

  /** From here on the response is what it was, for whoever has not wrapped it meanwhile. */
  #pass(): void {
    const res = this.#res
    this.#mode = 'passing'
    const { below } = this
    // Put back, and not deleted: an object that loses properties is slow from then on.
    if (res.writeHead === HELD_METHODS.writeHead) res.writeHead = below.writeHead
    if (res.write === HELD_METHODS.write) res.write = below.write
    if (res.end === HELD_METHODS.end) res.end = below.end
    if (res.flushHeaders === HELD_METHODS.flushHeaders) res.flushHeaders = below.flushHeaders
    if (res.destroy === HELD_METHODS.destroy) res.destroy = below.destroy
    if (res.emit === HELD_METHODS.emit) res.emit = below.emit
    if (!this.#hasLeft) return
    Object.assign(res, { socket: this.#socket })
    Reflect.deleteProperty(res, 'closed')
  }

  #tellOfLeaving(): void {
    const res = this.#res
    res.destroyed = true
    if (this.#hasEnded) res.emit('finish')
    if (this.#owesClose) res.emit('close')
  }

  /** The answer has left, and its handler may not know: what it says now is ignored, and nothing fails for it. */
  #mute(status: number, sent: Uint8Array): void {
    const res = this.#res
    const options = this.#options
    let isIgnored = false
    const nothing = (): ServerResponse => res
    const end = (...given: unknown[]): ServerResponse => {
      const [chunk, encoding] = given
      callBack(given)
      if (isIgnored) return res
      isIgnored = true
      const isBody = typeof chunk === 'string' || chunk instanceof Uint8Array
      const said = isBody ? bytesOf(chunk, asEncoding(encoding), false) : Buffer.alloc(0)
      if (res.statusCode !== status || Buffer.compare(said, sent) !== 0) options.ignored?.()
      return res
    }
    Object.assign(res, {
      setHeader: nothing,
      setHeaders: nothing,
      appendHeader: nothing,
      removeHeader: () => {},
      writeHead: nothing,
      flushHeaders: () => {},
      write: swallow,
      end,
    })
    Object.defineProperty(res, 'headersSent', { value: false, configurable: true, writable: true })
    // Whoever writes it to a log wants to know that it was sent.
    res.prependOnceListener('finish', () => {
      Reflect.deleteProperty(res, 'headersSent')
      res.statusCode = status
    })
  }
}

/** Puts an answer that no handler gave onto a response, and sends it. Headers that are there and are not its own stay. */
export function sendGiven(res: ServerResponse, given: GivenAnswer): void {
  putAnswer(res, given)
  endWith(res, given, (bytes) => (bytes === undefined ? res.end() : res.end(bytes)))
}

function putAnswer(res: ServerResponse, { status, headers }: GivenAnswer): void {
  res.statusCode = status
  // Node fills in the usual one.
  res.statusMessage = ''
  // Node takes a header that was removed for one that must not be, and closes the connection where it needs it.
  for (const name of ['content-type', 'content-length', 'content-encoding', 'transfer-encoding'])
    if (res.hasHeader(name) && !headers.some(([one]) => one === name)) res.removeHeader(name)
  for (const [name, value] of headers) res.setHeader(name, value)
}

function endWith(
  res: ServerResponse,
  { status, body }: GivenAnswer,
  end: (bytes: Uint8Array | undefined) => void,
): void {
  // Said here, since what other middleware does to the head would keep Node from saying it.
  if (mayHaveBody(status)) res.setHeader('content-length', body?.byteLength ?? 0)
  end(body)
}

function mayHaveBody(status: number): boolean {
  return status !== 204 && status !== 304
}

function holdOf(res: ServerResponse): Hold {
  return (res as Holding)[HOLD] as Hold
}

/**
 * What a held response has in place of its methods. Shared by all, so that a request makes none of its own; and each goes
 * on to what lies below once the answer has left, for those that have wrapped it meanwhile.
 */
const HELD_METHODS = {
  writeHead(this: ServerResponse, status: number, ...rest: unknown[]): ServerResponse {
    const hold = holdOf(this)
    if (!hold.isHolding) return (hold.below.writeHead as Passed).call(this, status, ...rest) as ServerResponse
    hold.writeHead(status, rest)
    return this
  },
  write(
    this: ServerResponse,
    chunk: unknown,
    encoding?: BufferEncoding | Callback,
    callback?: Callback,
  ): boolean {
    const hold = holdOf(this)
    if (!hold.isHolding) return (hold.below.write as Passed).call(this, chunk, encoding, callback) as boolean
    const done = typeof encoding === 'function' ? encoding : callback
    const flows = hold.write(chunk, asEncoding(encoding))
    // Told at once: a writer that waits for this before it goes on would wait for ever.
    if (done !== undefined) process.nextTick(done)
    return flows
  },
  end(this: ServerResponse, chunk?: unknown, encoding?: unknown, callback?: unknown): ServerResponse {
    const hold = holdOf(this)
    if (!hold.isHolding) {
      return (hold.below.end as Passed).call(this, chunk, encoding, callback) as ServerResponse
    }
    const done = typeof chunk === 'function' ? chunk : typeof encoding === 'function' ? encoding : callback
    if (typeof done === 'function') this.once('finish', done as () => void)
    hold.end(typeof chunk === 'function' ? undefined : chunk, asEncoding(encoding))
    return this
  },
  flushHeaders(this: ServerResponse): void {
    const hold = holdOf(this)
    if (hold.isHolding) hold.flushHeaders()
    else hold.below.flushHeaders.call(this)
  },
  destroy(this: ServerResponse, error?: Error): ServerResponse {
    const hold = holdOf(this)
    hold.giveUp()
    return hold.below.destroy.call(this, error) as ServerResponse
  },
  emit(this: ServerResponse, event: string | symbol, ...values: unknown[]): boolean {
    const hold = holdOf(this)
    if (hold.isHolding && event === 'close') {
      hold.leave({ owesClose: true })
      return true
    }
    if (hold.isHolding && event === 'pipe') hold.watch(values[0])
    return hold.below.emit.call(this, event, ...values)
  },
}

type Passed = (this: ServerResponse, ...values: unknown[]) => unknown

/** Takes what nobody gets. */
function swallow(...given: unknown[]): boolean {
  callBack(given)
  return true
}

/** Calls the callback among the arguments: whoever waits for it before it goes on would wait for ever. */
function callBack(given: readonly unknown[]): void {
  const done = given.find((argument) => typeof argument === 'function')
  if (done !== undefined) process.nextTick(done as () => void)
}

function asEncoding(encoding: unknown): BufferEncoding | undefined {
  return typeof encoding === 'string' ? (encoding as BufferEncoding) : undefined
}

function bytesOf(chunk: unknown, encoding: BufferEncoding | undefined, isReused: boolean): Buffer {
  if (typeof chunk === 'string') return Buffer.from(chunk, encoding)
  if (!(chunk instanceof Uint8Array))
    throw Object.assign(
      new TypeError(`The chunk must be a string or bytes; got ${chunk === null ? 'null' : typeof chunk}`),
      { code: 'ERR_INVALID_ARG_TYPE' },
    )
  // A writer is told at once that it may use its memory again.
  if (isReused) return Buffer.from(chunk)
  return asBuffer(chunk)
}

function headOf(res: ServerResponse): ResponseHead {
  return { status: res.statusCode, message: res.statusMessage, headers: res.getHeaders() }
}

/**
 * The head of an answer that begins, which nobody sends before it is kept. So what Node would refuse to send is refused
 * here, where the handler hears of it.
 */
function sendableHeadOf(res: ServerResponse): ResponseHead {
  const given: unknown = res.statusCode
  // Node takes the number in a text as well. Whoever decides by the status compares numbers.
  const status = Math.trunc(Number(given))
  if (!(status >= 100 && status <= 999))
    throw Object.assign(new RangeError(`Invalid status code: ${String(given)}`), {
      code: 'ERR_HTTP_INVALID_STATUS_CODE',
    })
  if (res.statusMessage) validateHeaderValue('statusMessage', res.statusMessage)
  res.statusCode = status
  return headOf(res)
}

function hasHead(res: ServerResponse, { status, message, headers }: ResponseHead): boolean {
  if (res.statusCode !== status || res.statusMessage !== message) return false
  const names = res.getHeaderNames()
  return (
    names.length === Object.keys(headers).length &&
    names.every((name) => res.getHeader(name) === headers[name])
  )
}

function putHead(res: ServerResponse, { status, message, headers }: ResponseHead): void {
  res.statusCode = status
  res.statusMessage = message
  for (const name of res.getHeaderNames()) if (!(name in headers)) res.removeHeader(name)
  putHeaders(res, headers)
}

function putHeaders(res: ServerResponse, headers: OutgoingHttpHeaders): void {
  for (const [name, value] of Object.entries(headers))
    if (value !== undefined && res.getHeader(name) !== value) res.setHeader(name, value)
}

function setHeaders(res: ServerResponse, headers: OutgoingHttpHeaders | readonly OutgoingHttpHeader[]): void {
  if (!Array.isArray(headers)) {
    for (const [name, value] of Object.entries(headers)) if (value !== undefined) res.setHeader(name, value)
    return
  }
  // Node takes a flat list of names and values here, and a list of pairs.
  const flat = headers.flat() as readonly string[]
  // They take the place of those from before, and among themselves a name may come again.
  for (let index = 0; index < flat.length; index += 2) res.removeHeader(flat[index] as string)
  for (let index = 0; index + 1 < flat.length; index += 2)
    res.appendHeader(flat[index] as string, flat[index + 1] as string)
}
