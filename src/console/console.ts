import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify'
import { recordId } from '../contract/key.js'
import { parseKeyHeader } from '../http/key-header.js'
import { addChanges, type ById, UNPROTECTED, whyNoChange } from './changes.js'
import { type ConsoleOptions, parseConsoleOptions } from './console-options.js'
import { createCounter } from './counts.js'
import { fieldsOf, guard, pathOf, show } from './guard.js'
import { html } from './html.js'
import { type Asked, OVERVIEW_LIMIT, overviewPage } from './overview-page.js'
import { page } from './page.js'
import { recordPage } from './record-page.js'
import { listQueryOf, listRequestOf, recordsPage } from './records-page.js'
import { searchForm } from './search-form.js'
import { type LimitedQuery, viewStore } from './store-view.js'
import { STYLESHEET } from './stylesheet.js'

export type { AuditLogger, AuditOptions } from '../telemetry/audit-log.js'
export type { Authorized, ConsoleOptions, Operator, ShownEngine } from './console-options.js'

/**
 * Pages for operators, below the prefix that it is registered with: what became of requests, what is running, and what is
 * unknown, which can be settled or released where `actions` says so. It has no sign-in of its own: `authorize` says who asks.
 *
 * @throws {OptionsError} at registration, naming the option that is missing or wrong.
 */
const operatorConsole: FastifyPluginAsync<ConsoleOptions> = async (app, options) => {
  const settings = parseConsoleOptions(options, app)
  const { idempotency } = settings
  const counter = createCounter()
  const stopCounting = idempotency.on((event) => counter.count(event))
  app.addHook('onClose', async () => stopCounting())

  const { frameOf, operatorOf } = guard(app, settings)
  const store = viewStore(idempotency.store)
  addChanges(app, { settings, store, frameOf, operatorOf })

  async function ask(request: FastifyRequest, reply: FastifyReply, query: LimitedQuery): Promise<Asked> {
    if (store.list === undefined) return 'cannot-list'
    // Some stores read every record for a list: not for somebody who has left.
    const gone = new AbortController()
    reply.raw.once('close', () => gone.abort())
    try {
      return await store.list({ ...query, signal: gone.signal })
    } catch (error) {
      request.log.error({ err: error }, 'oncekey console: the store could not be listed')
      return 'failed'
    }
  }

  app.get('/', async (request, reply) => {
    const path = pathOf(request)
    // Links are relative to a folder. A proxy with a name of its own for it has to add the slash itself.
    if (!path.endsWith('/')) return reply.redirect(`./${path.slice(path.lastIndexOf('/') + 1)}/`)
    const [unknown, running] = await Promise.all([
      ask(request, reply, { status: 'unknown', limit: OVERVIEW_LIMIT }),
      ask(request, reply, { status: 'running', limit: OVERVIEW_LIMIT }),
    ])
    if (unknown === 'failed' || running === 'failed') reply.code(503)
    const { since } = counter
    return show(reply, overviewPage(frameOf(request), { unknown, running, counted: counter.read(), since }))
  })

  app.get('/console.css', (_request, reply) => reply.type('text/css; charset=utf-8').send(STYLESHEET))

  app.get('/records', async (request, reply) => {
    const wanted = listRequestOf(new URL(request.url, 'http://console').searchParams)
    const asked = await ask(request, reply, listQueryOf(wanted))
    if (asked === 'failed') reply.code(503)
    return show(reply, recordsPage(frameOf(request), wanted, asked))
  })

  app.get<ById>('/records/:id', async (request, reply) => {
    const record = await store.find(request.params.id)
    if (record === undefined) return noRecord(request, reply)
    const whyNot = whyNoChange(settings, operatorOf(request))
    return show(reply, recordPage(frameOf(request), { record, whyNot }))
  })

  app.post('/search', UNPROTECTED, async (request, reply) => {
    const fields = fieldsOf(request)
    const [key, scope, id] = [
      fields.get('key') ?? '',
      // As it is: the scope with a space beside it may be another caller.
      fields.get('scope') ?? '',
      fields.get('id')?.trim() ?? '',
    ]
    const ids = id === '' ? idsOf(idempotency.namespace, scope, key) : [id]
    for (const one of ids)
      if ((await store.find(one)) !== undefined)
        return reply.redirect(`${frameOf(request).root}records/${encodeURIComponent(one)}`, 303)
    return noRecord(request, reply, { key, scope })
  })

  function noRecord(
    request: FastifyRequest,
    reply: FastifyReply,
    given: { readonly key?: string; readonly scope?: string } = {},
  ): FastifyReply {
    const frame = frameOf(request)
    const content = html`<h1>No such record</h1>
<p>No operation with this name is known: it never came, was released, or is forgotten by now. Key and scope must be exactly as the service has them, spaces too${idempotency.namespace !== '' && html`, in its namespace <code>${idempotency.namespace}</code>`}.</p>
${searchForm(frame.root, given)}`
    return show(reply.code(404), page(frame, { title: 'No such record', content }))
  }
}

export default operatorConsole

/**
 * What a key may be called in the store: what was typed, or what the service reads in a header that holds it, where spaces
 * around it are not part of it, nor are quotes.
 */
function idsOf(namespace: string, scope: string, key: string): readonly string[] {
  const keys = new Set([key])
  try {
    keys.add(parseKeyHeader(key.trim(), 'Idempotency-Key'))
  } catch {
    // A key that an application takes from elsewhere need not fit into a header.
  }
  return [...keys].map((one) => recordId({ namespace, scope, key: one }))
}
