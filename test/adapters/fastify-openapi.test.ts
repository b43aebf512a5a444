import swagger, { type FastifyDynamicSwaggerOptions } from '@fastify/swagger'
import { Validator } from '@seriousme/openapi-schema-validator'
import Fastify, { type FastifyInstance, type FastifySchema } from 'fastify'
import { describe, expect, it } from 'vitest'
import idempotency, { type FastifyIdempotencyOptions, openApiTransform } from '../../src/adapters/fastify.js'
import { parseKeyHeader } from '../../src/http/key-header.js'
import { memoryStore } from '../../src/stores/memory.js'
import { aKey, send } from '../support/fastify-app.js'

interface Described {
  readonly type?: string
  readonly $ref?: string
  readonly properties?: Readonly<Record<string, { readonly enum?: readonly string[] }>>
  readonly required?: readonly string[]
  readonly anyOf?: readonly Described[]
}

interface Operation {
  readonly summary?: string
  readonly parameters?: readonly {
    readonly name: string
    readonly in: string
    readonly required: boolean
    readonly schema: { readonly pattern: string }
  }[]
  readonly responses: Readonly<
    Record<
      string,
      {
        readonly description: string
        readonly headers?: object
        readonly content?: Readonly<Record<string, { readonly schema: Described }>>
        readonly schema?: Described
      }
    >
  >
}

const PROBLEM = 'application/problem+json'

/** An application whose description is made, and validated. */
async function describedApp(
  define: (app: FastifyInstance) => void | Promise<void>,
  options: Partial<FastifyIdempotencyOptions> = {},
  setUp: FastifyDynamicSwaggerOptions = {
    openapi: { info: { title: 'bank', version: '1' } },
    transform: openApiTransform(),
  },
): Promise<{
  readonly app: FastifyInstance
  readonly operation: (path: string, method?: string) => Operation
}> {
  const app = Fastify()
  await app.register(swagger, setUp)
  await app.register(idempotency, { store: memoryStore(), scope: 'shared', ...options })
  await define(app)
  await app.ready()
  const document = JSON.parse(JSON.stringify(app.swagger())) as {
    readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  }
  const validated = await new Validator().validate(structuredClone(document))
  expect(validated.errors).toBeUndefined()
  expect(validated.valid).toBe(true)
  return { app, operation: (path, method = 'post') => document.paths[path]?.[method] ?? expect.fail(path) }
}

const codesOf = ({ responses }: Operation, status: number): readonly string[] =>
  responses[status]?.content?.[PROBLEM]?.schema.properties?.code?.enum ?? []

describe('openApiTransform', () => {
  it('describes the header, and the answers, of a protected route', async () => {
    const { operation } = await describedApp((app) => {
      app.post('/payments', { config: { idempotency: { required: true } } }, () => 'done')
      app.patch('/payments/:id', () => 'done')
    })
    const post = operation('/payments')
    expect(post.parameters).toMatchObject([{ name: 'Idempotency-Key', in: 'header', required: true }])
    expect(Object.keys(post.responses)).toEqual(['200', '400', '409', '422', '503'])
    expect(codesOf(post, 422)).toEqual(['IDEMPOTENCY_KEY_REUSED'])
    expect(codesOf(post, 409)).toContain('IDEMPOTENCY_KEY_IN_PROGRESS')
    expect(Object.keys(post.responses[409]?.headers ?? {})).toEqual(['Retry-After'])
    expect(post.responses[422]).not.toHaveProperty('headers.Retry-After')
    const patch = operation('/payments/{id}', 'patch')
    expect(patch.parameters?.find(({ name }) => name === 'Idempotency-Key')).toMatchObject({
      required: false,
    })
    expect(patch.parameters?.find(({ name }) => name === 'id')).toMatchObject({ in: 'path' })
  })

  it('describes what a client is really answered', async () => {
    const { app, operation } = await describedApp((app) => {
      app.post('/payments', { config: { idempotency: { required: true } } }, () => 'done')
    })
    const { responses } = operation('/payments')
    const key = aKey()
    await send(app, '/payments', { key })
    const answers = [await send(app, '/payments'), await send(app, '/payments', { key, payload: {} })]
    for (const { status, bytes, headers } of answers) {
      const type = String(headers['content-type']).split(';')[0] ?? ''
      const problem = JSON.parse(bytes.toString()) as { readonly code: string }
      expect(Object.keys(problem).sort()).toEqual(
        [...(responses[status]?.content?.[type]?.schema.required ?? [])].sort(),
      )
      expect(codesOf(operation('/payments'), status)).toContain(problem.code)
    }
  })

  it('gives a grammar of keys that are taken', async () => {
    const { operation } = await describedApp((app) => void app.post('/', () => 'done'))
    const pattern = new RegExp(operation('/').parameters?.[0]?.schema.pattern ?? expect.fail(), 'u')
    for (const key of [
      'abc',
      aKey(),
      '"abc"',
      '"a \\"b\\" \\\\"',
      'a'.repeat(255),
      `"${'a'.repeat(255)}"`,
      'x',
    ]) {
      expect(pattern.test(key)).toBe(true)
      expect(parseKeyHeader(key, 'Idempotency-Key').length).toBeLessThanOrEqual(255)
    }
    for (const key of [
      '',
      '""',
      'two words',
      'a,b',
      '"a',
      'a"',
      '"a"b"',
      'a'.repeat(256),
      `"${'a'.repeat(256)}"`,
      '"\u00e9"',
      '"\\a"',
    ])
      expect(pattern.test(key)).toBe(false)
  })

  it('leaves unprotected routes alone', async () => {
    const { operation } = await describedApp((app) => {
      app.get('/payments', () => [])
      app.post('/search', { config: { idempotency: false } }, () => [])
    })
    for (const plain of [operation('/payments', 'get'), operation('/search')]) {
      expect(plain).not.toHaveProperty('parameters')
      expect(Object.keys(plain.responses)).toEqual(['200'])
    }
  })

  it('says what each route says of itself', async () => {
    const { operation } = await describedApp((app) => {
      app.post(
        '/any',
        { config: { idempotency: { header: ['Idempotency-Key', 'X-Request'], required: true } } },
        () => 1,
      )
      app.post('/body', { config: { idempotency: { key: () => 'k', required: true } } }, () => 1)
      app.post('/unchecked', { config: { idempotency: { fingerprint: false } } }, () => 1)
      app.post('/own', { config: { idempotency: { onProblem: () => ({ body: '{}' }) } } }, () => 1)
      app.route({
        url: '/both',
        method: ['GET', 'POST'],
        config: { idempotency: { required: true } },
        handler: () => 1,
      })
    })
    // One of the two is enough, so neither is required.
    expect(operation('/any').parameters).toMatchObject([
      { name: 'Idempotency-Key', required: false },
      { name: 'X-Request', required: false },
    ])
    expect(operation('/body')).not.toHaveProperty('parameters')
    expect(Object.keys(operation('/body').responses)).toContain('400')
    expect(Object.keys(operation('/unchecked').responses)).toEqual(['200', '400', '409', '503'])
    expect(operation('/own').responses[409]).not.toHaveProperty('content')
    expect(operation('/both').parameters).toMatchObject([{ name: 'Idempotency-Key', required: false }])
  })

  it('stands beside what the application says of its answers and headers', async () => {
    const { operation } = await describedApp((app) => {
      const tenant = {
        type: 'object',
        properties: { 'x-tenant': { type: 'string' } },
        required: ['x-tenant'],
      }
      app.addSchema({ $id: 'Failure', type: 'object', properties: { error: { type: 'string' } } })
      const problem = { type: 'object', properties: { title: { type: 'string' } } }
      app.post(
        '/payments',
        {
          config: { idempotency: { required: true } },
          schema: {
            headers: tenant,
            response: {
              201: { type: 'object', properties: { id: { type: 'string' } } },
              409: { description: 'The account is closed.', $ref: 'Failure#' },
              422: { description: 'Refused.', content: { 'application/problem+json': { schema: problem } } },
              503: { description: 'Away.', type: 'null' },
              '4xx': { $ref: 'Failure#' },
            },
          },
        },
        () => ({ id: 'p-1' }),
      )
      app.post(
        '/referred',
        { config: { idempotency: { required: true } }, schema: { headers: { allOf: [tenant] } } },
        () => 1,
      )
      app.post(
        '/told',
        {
          config: { idempotency: { required: true } },
          schema: {
            headers: {
              type: 'object',
              properties: { 'idempotency-key': { type: 'string', description: 'Ours.' } },
            },
          },
        },
        () => 1,
      )
    })
    const { parameters, responses } = operation('/payments')
    expect(parameters).toMatchObject([
      { name: 'x-tenant', required: true },
      { name: 'Idempotency-Key', required: true },
    ])
    expect(Object.keys(responses).sort()).toEqual(['201', '400', '409', '422', '4XX', '503'])
    expect(responses[409]?.description).toMatch(/^The account is closed\. Or: /)
    expect(responses[409]?.content).toMatchObject({
      'application/json': { schema: { $ref: expect.stringMatching(/^#\/components\/schemas\//) } },
      'application/problem+json': { schema: { required: expect.arrayContaining(['code']) } },
    })
    expect(responses[422]?.content?.[PROBLEM]?.schema.anyOf).toHaveLength(2)
    expect(Object.keys(responses[503]?.content ?? {})).toEqual([PROBLEM])
    expect(operation('/referred').parameters).toMatchObject([
      { name: 'x-tenant', required: true },
      { name: 'Idempotency-Key', required: true },
    ])
    expect(operation('/told').parameters).toMatchObject([
      { name: 'idempotency-key', required: true, description: 'Ours.' },
    ])
  })

  it('changes nothing that Fastify validates or serialises', async () => {
    const schema: FastifySchema = {
      response: { 409: { type: 'object', properties: { error: { type: 'string' } } } },
    }
    const { app } = await describedApp((app) => {
      app.post('/payments', { config: { idempotency: { required: true } }, schema }, (request, reply) => {
        const { status } = request.body as { readonly status: number }
        return reply.code(status).send({ error: 'closed', secret: 'x' })
      })
    })
    const answer = async (status: number) => send(app, '/payments', { key: aKey(), payload: { status } })
    // By the application's schema where it has one, and as it is elsewhere.
    expect((await answer(409)).bytes.toString()).toBe('{"error":"closed"}')
    for (const status of [400, 422, 503])
      expect((await answer(status)).bytes.toString()).toBe('{"error":"closed","secret":"x"}')
    // With parameters, which the description does not speak of.
    expect(await send(app, '/payments', { key: '"abc";v=1', payload: { status: 200 } })).toMatchObject({
      status: 200,
    })
    const refused = await send(app, '/payments')
    expect(refused).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
  })

  it('comes after the transform of the application, and before or after the plugin', async () => {
    const app = Fastify()
    await app.register(idempotency, { store: memoryStore(), scope: 'shared' })
    const inner = ({ schema, url }: { readonly schema: object; readonly url: string }) => ({
      schema: { ...schema, summary: 'Pays', response: { 201: { type: 'null', description: 'Paid.' } } },
      url: `/v1${url}`,
    })
    await app.register(swagger, { openapi: {}, transform: openApiTransform(inner) })
    app.post('/payments', () => 'done')
    await app.ready()
    const paths = app.swagger().paths as never as Record<string, { post: Operation }>
    expect(paths['/v1/payments']?.post.summary).toBe('Pays')
    expect(Object.keys(paths['/v1/payments']?.post.responses ?? {})).toEqual([
      '201',
      '400',
      '409',
      '422',
      '503',
    ])
  })

  it('speaks OpenAPI 3.1 and Swagger 2 too', async () => {
    const own = { 409: { type: 'object', properties: { error: { type: 'string' } } } }
    const define = (app: FastifyInstance) => {
      app.post('/payments', { config: { idempotency: { required: true } } }, () => 'done')
      app.post('/own', { schema: { response: own } }, () => 'done')
    }
    const transform = openApiTransform()
    const info = { title: 'bank', version: '1' }
    const newer = await describedApp(define, {}, { openapi: { openapi: '3.1.0', info }, transform })
    expect(codesOf(newer.operation('/payments'), 422)).toEqual(['IDEMPOTENCY_KEY_REUSED'])
    const older = await describedApp(define, {}, { swagger: { info }, transform })
    expect(older.operation('/payments').parameters).toMatchObject([
      { name: 'Idempotency-Key', required: true },
    ])
    expect(older.operation('/payments').responses[422]?.schema).toMatchObject({ type: 'object' })
    expect(older.operation('/own').responses[409]?.schema).toMatchObject({ properties: { error: {} } })
    expect(Object.keys(older.operation('/own').responses)).toEqual(['400', '409', '422', '503'])
  })
})
