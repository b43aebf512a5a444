import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { StoredRecord } from '../contract/store.js'
import { type AuditTrail, endUnknown, isAsSeen, type SeenRecord } from '../operator/end-unknown.js'
import { isOfHttp } from '../operator/is-of-http.js'
import { type AuditEntry, writeAudit } from '../telemetry/audit-log.js'
import { confirmPage, consequences } from './confirm-page.js'
import { createConfirmations } from './confirmation.js'
import type { ConsoleSettings, Operator } from './console-options.js'
import { fieldsOf, type Guard, show } from './guard.js'
import { html } from './html.js'
import { messagePage, page } from './page.js'
import { recordPage } from './record-page.js'
import { keptBy, type Resolution } from './resolution.js'
import { resolutionOf, type SettleForm, settleFormOf } from './settle-form.js'
import type { StoreView } from './store-view.js'

/** What the routes of a console share. */
export interface Desk extends Guard {
  readonly settings: ConsoleSettings
  readonly store: StoreView
}

/** A route with a record in its path. */
export interface ById {
  readonly Params: { readonly id: string }
}

/** The console's own forms carry no key. */
export const UNPROTECTED = { config: { idempotency: false } } as const

/** Why this person can change nothing here, or `undefined`. */
export function whyNoChange({ actions }: ConsoleSettings, { mayChange }: Operator): string | undefined {
  if (!actions)
    return 'This console only shows. Use the command npx oncekey, or register the console with actions: true.'
  return mayChange === true ? undefined : 'You may look here, and not settle or release anything.'
}

/** A change as a form asks for it. */
interface Change {
  readonly seen: SeenRecord
  /** `undefined` to release. */
  readonly form: SettleForm | undefined
}

/**
 * Adds the routes that change something. The first form of each asks, and its answer is a page that says what will happen;
 * the form of that page has a proof that it was shown, to this person and for this change, and does it.
 */
export function addChanges(app: FastifyInstance, desk: Desk): void {
  const { settings, store, frameOf, operatorOf } = desk
  const { ttlMs } = settings.idempotency.policy
  const confirmations = createConfirmations(settings.secret)

  app.post<ById>('/records/:id/settle', UNPROTECTED, (request, reply) =>
    answer(request, reply, { seen: seenIn(request), form: settleFormOf(fieldsOf(request)) }),
  )
  app.post<ById>('/records/:id/release', UNPROTECTED, (request, reply) =>
    answer(request, reply, { seen: seenIn(request), form: undefined }),
  )

  async function answer(request: FastifyRequest, reply: FastifyReply, change: Change): Promise<FastifyReply> {
    const operator = operatorOf(request)
    const whyNot = whyNoChange(settings, operator)
    if (whyNot !== undefined)
      return show(reply.code(403), messagePage(frameOf(request), { title: 'Not here', text: whyNot }))

    const proof = fieldsOf(request).get('confirm')
    if (proof === null) return question(request, reply, change)
    const resolution = resolutionIn(change)
    if (!confirmations.holds(proof, operator, shownIn(change)) || 'problem' in resolution) {
      request.log.warn({ id: change.seen.id }, 'oncekey console: a form without a valid proof was refused')
      return show(reply.code(403), messagePage(frameOf(request), INVALID_PROOF))
    }
    const decision = { seen: change.seen, ttlMs, ...keptBy(resolution) }
    const ending = await endUnknown(store, decision, trailOf(settings, operator))
    if (!ending.done) return notDone(request, reply, whyChanged(ending.now), ending.now)
    return done(request, reply, ending.record, resolution)
  }

  async function question(
    request: FastifyRequest,
    reply: FastifyReply,
    change: Change,
  ): Promise<FastifyReply> {
    const { seen, form } = change
    const record = await store.find(seen.id)
    if (record === undefined || !isAsSeen(record, seen))
      return notDone(request, reply, whyChanged(record), record)
    const resolution = resolutionIn(change)
    if (form !== undefined && !isOfHttp(record)) return notDone(request, reply, NOT_HTTP, record)
    if ('problem' in resolution) {
      const { problem } = resolution
      const view = { record, whyNot: undefined, refused: form && { problem, form } }
      return show(reply.code(422), recordPage(frameOf(request), view))
    }
    const fields = {
      fence: String(seen.fence),
      seen: String(seen.meta.firstSeenAt),
      ...form,
      confirm: confirmations.make(operatorOf(request), shownIn(change)),
    }
    const keptMs = Math.max(ttlMs, record.expiresInMs)
    return show(reply, confirmPage(frameOf(request), { record, resolution, keptMs, fields }))
  }

  function done(
    request: FastifyRequest,
    reply: FastifyReply,
    record: StoredRecord,
    resolution: Resolution,
  ): FastifyReply {
    const frame = frameOf(request)
    const title = resolution.kind === 'release' ? 'Released' : 'Settled'
    const keptMs = Math.max(ttlMs, record.expiresInMs)
    const content = html`<section class="card" role="status"><h1>${title}</h1>
<p>Key <code><bdi>${record.meta.key}</bdi></code> of <code><bdi>${record.meta.route}</bdi></code>. The audit log has your name.</p>
${consequences(resolution, keptMs)}
<p>${resolution.kind !== 'release' && html`<a href="${frame.root}records/${encodeURIComponent(record.id)}">Look at the record</a> · `}<a href="${frame.root}records?status=unknown">Other unknown outcomes</a></p></section>`
    return show(reply, page(frame, { title, content }))
  }

  function notDone(
    request: FastifyRequest,
    reply: FastifyReply,
    why: string,
    now: StoredRecord | undefined,
  ): FastifyReply {
    const frame = frameOf(request)
    const link =
      now && html`<p><a href="${frame.root}records/${encodeURIComponent(now.id)}">Look at the record</a></p>`
    const text = `Nothing was changed. ${why}`
    return show(reply.code(409), messagePage(frame, { title: 'Not done', text, more: link }))
  }
}

const INVALID_PROOF = {
  title: 'Not done',
  text: 'Nothing was changed. This form is not valid any more, or was not made for you: it stays valid for 15 minutes, for one person and one change, and for the process that made it unless the console has the option "secret". Open the record again.',
}

/** Both lines of a change, with who made it. */
function trailOf({ logger, audit }: ConsoleSettings, { by }: Operator): AuditTrail {
  const write = (entry: AuditEntry): void => void writeAudit(logger, { ...entry, by }, audit)
  return { announce: write, done: write }
}

const NOT_HTTP = 'This is not the record of an HTTP request: it can be released here, and not settled.'

const STATES = {
  absent: 'There is no such record any more: it was released, or has expired.',
  running: 'The operation is running now, under a claim that was made after you opened this page.',
  completed: 'The operation has an outcome by now, and retries get it.',
  unknown:
    'The operation was claimed again after you opened this page, and its outcome is unknown again. Look at it anew before you decide.',
} as const

function whyChanged(now: StoredRecord | undefined): string {
  return STATES[now?.status ?? 'absent']
}

function seenIn(request: FastifyRequest<ById>): SeenRecord {
  const fields = fieldsOf(request)
  const firstSeenAt = Number(fields.get('seen') ?? Number.NaN)
  return { id: request.params.id, fence: Number(fields.get('fence')), meta: { firstSeenAt } }
}

function resolutionIn({ form }: Change): ReturnType<typeof resolutionOf> {
  return form === undefined ? { kind: 'release' } : resolutionOf(form)
}

/** Everything that the page that asks has shown. */
function shownIn({ seen, form }: Change): readonly (string | number)[] {
  const about = [seen.id, seen.fence, seen.meta.firstSeenAt]
  return form === undefined
    ? ['release', ...about]
    : ['settle', ...about, form.answer, form.status, form.body]
}
