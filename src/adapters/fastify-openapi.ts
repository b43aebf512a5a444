import type { FastifySchema, RouteOptions } from 'fastify'
import { type JsonSchema, type ProblemSchema, protectionSchema } from '../http/problem-schema.js'
import { guardOf } from './fastify-route.js'

/** A route as `@fastify/swagger` tells its `transform` of it. */
export interface DescribedRoute {
  readonly schema: FastifySchema
  readonly url: string
  readonly route: RouteOptions
}

/** What `@fastify/swagger` takes as its `transform`. */
export type DescriptionTransform = (given: DescribedRoute) => {
  readonly schema: FastifySchema
  readonly url: string
}

/**
 * Lets `@fastify/swagger` tell of protected routes: the header with its grammar and whether it is required, and the answers
 * 400, 409, 422 and 503. Only the description changes. What Fastify validates and serialises stays as the application said.
 *
 *     await app.register(swagger, { openapi: {}, transform: openApiTransform() })
 *
 * @param inner a transform of the application, which comes first.
 */
export function openApiTransform(
  inner?: (given: never) => ReturnType<DescriptionTransform>,
): DescriptionTransform {
  return (given) => {
    const { schema, url } = inner === undefined ? given : inner(given as never)
    const guard = guardOf(given.route)
    if (guard === undefined) return { schema, url }
    const { settings } = guard
    const methods = [given.route.method].flat()
    const isRequired = settings.required && methods.every((method) => settings.methods.includes(method))
    const { headers, requiredHeader, answers } = protectionSchema(settings, isRequired)
    const isOpenApi = 'openapiObject' in given
    return {
      url,
      schema: {
        ...schema,
        headers: withHeaders(schema?.headers, headers, requiredHeader),
        response: withAnswers(schema, answers, isOpenApi ? described : describedForSwagger2),
      },
    }
  }
}

function withHeaders(
  own: unknown,
  headers: Readonly<Record<string, JsonSchema>>,
  required: string | undefined,
): unknown {
  if (Object.keys(headers).length === 0) return own
  const ours = {
    type: 'object',
    properties: headers,
    ...(required !== undefined && { required: [required] }),
  }
  if (!isObject(own)) return ours
  // A reference, or a combination: the description is resolved later.
  if (!isObject(own.properties)) return { allOf: [own, ours] }
  const properties: Record<string, unknown> = { ...own.properties }
  const mustBe = new Set(Array.isArray(own.required) ? (own.required as string[]) : [])
  for (const [name, schema] of Object.entries(headers)) {
    // Names of headers have no case. Where the application tells of it already, its own words stay.
    const known = Object.keys(properties).find((one) => one.toLowerCase() === name.toLowerCase())
    properties[known ?? name] ??= schema
    if (name === required) mustBe.add(known ?? name)
  }
  return { ...own, properties, required: [...mustBe] }
}

/** Makes the description of an answer, which the application may give as well. */
type Describe = (answer: ProblemSchema, own: unknown, mediaTypes: readonly string[]) => unknown

function withAnswers(
  schema: FastifySchema | undefined,
  answers: Readonly<Record<number, ProblemSchema>>,
  describe: Describe,
): unknown {
  const { response, produces } = (schema ?? {}) as {
    readonly response?: unknown
    readonly produces?: unknown
  }
  const own = isObject(response) ? response : { 200: { type: 'null', description: 'Default Response' } }
  const mediaTypes =
    Array.isArray(produces) && produces.length > 0 ? (produces as string[]) : ['application/json']
  const added = Object.entries(answers).map(([status, answer]) => [
    status,
    describe(answer, own[status], mediaTypes),
  ])
  return { ...own, ...Object.fromEntries(added) }
}

/** What `@fastify/swagger` takes for the description of a response, where that of its schema will not do. */
const RESPONSE_DESCRIPTION = 'x-response-description'

const PROBLEM_TYPE = 'application/problem+json'

const described: Describe = ({ description, headers, body }, own, mediaTypes) => {
  if (body === undefined) return own ?? { type: 'null', description, headers }
  const ours = { description, headers, content: { [PROBLEM_TYPE]: { schema: body } } }
  if (!isObject(own)) return ours
  const { headers: ownHeaders, content, [RESPONSE_DESCRIPTION]: said, ...ownSchema } = own
  const ownDescription = said ?? own.description
  const ownContent = isObject(content)
    ? content
    : own.type === 'null'
      ? {}
      : Object.fromEntries(mediaTypes.map((type) => [type, { schema: ownSchema }]))
  const problem = ownContent[PROBLEM_TYPE]
  const isShared = isObject(problem) && isObject(problem.schema)
  return {
    description: `${typeof ownDescription === 'string' ? `${ownDescription} Or: ` : ''}${description}`,
    headers: { ...headers, ...(isObject(ownHeaders) && ownHeaders) },
    content: {
      ...ownContent,
      [PROBLEM_TYPE]: isShared ? { ...problem, schema: { anyOf: [problem.schema, body] } } : { schema: body },
    },
  }
}

/** Swagger 2 has one schema for a status: where the application gives one, it stays. */
const describedForSwagger2: Describe = ({ description, headers, body }, own) =>
  own ?? { ...(body ?? { type: 'null' }), description, headers }

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
