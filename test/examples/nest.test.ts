import 'reflect-metadata'
import { Readable } from 'node:stream'
import {
  Body,
  Controller,
  ForbiddenException,
  HttpCode,
  HttpException,
  type INestApplication,
  type MiddlewareConsumer,
  Module,
  type NestModule,
  Post,
  Redirect,
  Req,
  Res,
  StreamableFile,
  UseGuards,
} from '@nestjs/common'
import type { FastifyRequest } from 'fastify'
import { NothingHappenedError } from 'oncekey'
import { afterEach, describe, expect, it } from 'vitest'
import * as express from '../../examples/nest/express.js'
import * as fastify from '../../examples/nest/fastify.js'
import { PaymentsModule } from '../../examples/nest/payments.js'
import { aKey } from '../support/fastify-app.js'
import { answered } from '../support/web-app.js'
import { ALL_BYTES } from '../support/web-response-kinds.js'

const apps: INestApplication[] = []
afterEach(async () => {
  await Promise.all(apps.splice(0).map((app) => app.close()))
})

async function listening(app: INestApplication): Promise<string> {
  apps.push(app)
  await app.listen(0, '127.0.0.1')
  return app.getUrl()
}

const send = async (url: string, given: { key?: string; body?: string; account?: string }) =>
  answered(
    await fetch(url, {
      method: 'POST',
      redirect: 'manual',
      headers: {
        'content-type': 'application/json',
        'x-account': given.account ?? 'ada',
        ...(given.key !== undefined && { 'idempotency-key': given.key }),
      },
      body: given.body ?? '{"amount":5}',
    }),
  )

describe('examples/nest on Fastify', () => {
  it('pays once, and answers every retry alike', async () => {
    const url = `${await listening(await fastify.aBank(PaymentsModule))}/accounts/a-1/payments`
    const key = aKey()
    const first = await send(url, { key })
    expect(first.status).toBe(201)
    expect(JSON.parse(first.bytes.toString())).toEqual({ id: 'p-1', from: 'a-1', amount: 5, attempt: 1 })
    expect(await send(url, { key })).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(await send(url, { key, body: '{"amount":6}' })).toMatchObject({ status: 422 })
    expect(await send(url, { key, account: 'bob' })).toMatchObject({ isReplay: false })
    expect(await send(url, {})).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
    const refused = aKey()
    const refusal = await send(url, { key: refused, body: '{"amount":5000}' })
    expect(refusal.status).toBe(402)
    expect(await send(url, { key: refused, body: '{"amount":5000}' })).toMatchObject({
      status: 402,
      isReplay: true,
      bytes: refusal.bytes,
    })
  })
})

describe('examples/nest on Express', () => {
  it('refunds once, and answers every retry alike', async () => {
    const url = `${await listening(await express.aBank(express.RefundsModule))}/refunds`
    const key = aKey()
    const first = await send(url, { key })
    expect(first.status).toBe(201)
    expect(JSON.parse(first.bytes.toString())).toEqual({ id: 'r-1', amount: 5, attempt: 1 })
    expect(await send(url, { key })).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(await send(url, { key, body: '{"amount":6}' })).toMatchObject({ status: 422 })
    expect(await send(url, { key, account: 'bob' })).toMatchObject({ isReplay: false })
    expect(await send(url, {})).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
  })
})

const effects = { count: 0, isOpen: false }

class ClosedAtNight {
  canActivate(): boolean {
    if (!effects.isOpen) throw new ForbiddenException()
    return true
  }
}

/** What a reply of Fastify and a response of Express have in common. */
interface Reply {
  status(status: number): this
  header(name: string, value: string): this
  send(body: Buffer): unknown
}

@Controller()
class Kinds {
  @Post('text') text() {
    effects.count += 1
    return 'text'
  }

  @Post('nothing') @HttpCode(204) nothing() {
    effects.count += 1
  }

  @Post('promise') async promise() {
    effects.count += 1
    return { a: 1 }
  }

  @Post('redirect') @Redirect('/elsewhere', 303) redirect() {
    effects.count += 1
  }

  @Post('file') file() {
    effects.count += 1
    return new StreamableFile(Readable.from([ALL_BYTES, ALL_BYTES]), { type: 'image/png' })
  }

  @Post('reply') reply(@Res() reply: Reply) {
    effects.count += 1
    reply.status(202).header('x-kept', 'yes').send(ALL_BYTES)
  }

  @Post('refusal') refusal(@Body() _: unknown) {
    effects.count += 1
    throw new HttpException({ error: 'declined' }, 402)
  }

  @Post('failure') failure() {
    effects.count += 1
    throw new Error('boom')
  }

  @Post('guarded') @UseGuards(new ClosedAtNight()) guarded() {
    effects.count += 1
    return 'open'
  }

  @Post('again') again(@Req() { idempotency }: Pick<FastifyRequest, 'idempotency'>) {
    effects.count += 1
    if (effects.count === 1) throw new NothingHappenedError('not now')
    return `run ${effects.count} of ${idempotency.key}`
  }
}

@Module({ controllers: [Kinds] })
class KindsOnFastify {}

@Module({ controllers: [Kinds] })
class KindsOnExpress implements NestModule {
  configure(consumer: MiddlewareConsumer) {
    consumer.apply(express.once()).forRoutes(Kinds)
  }
}

describe.each([
  ['Fastify', () => fastify.aBank(KindsOnFastify)],
  ['Express', () => express.aBank(KindsOnExpress)],
] as const)('Nest on %s', (_, aBank) => {
  it.each([
    ['text', 201, 'text'],
    ['nothing', 204, ''],
    ['promise', 201, '{"a":1}'],
    // Each framework has words of its own for it.
    ['redirect', 303, undefined],
    ['file', 201, Buffer.concat([ALL_BYTES, ALL_BYTES])],
    ['reply', 202, ALL_BYTES],
    ['refusal', 402, '{"error":"declined"}'],
    ['failure', 500, '{"statusCode":500,"message":"Internal server error"}'],
  ])('replays /%s byte for byte, with one effect', async (path, status, body) => {
    effects.count = 0
    const url = `${await listening(await aBank())}/${path}`
    const key = aKey()
    const first = await send(url, { key })
    expect(first).toMatchObject({ status, isReplay: false })
    if (body !== undefined) expect(first.bytes).toEqual(Buffer.from(body))
    for (let retry = 0; retry < 2; retry += 1) {
      const again = await send(url, { key })
      expect(again).toMatchObject({ status, isReplay: true, bytes: first.bytes })
      for (const name of ['content-type', 'location', 'x-kept'])
        expect(again.headers[name]).toBe(first.headers[name])
    }
    expect(effects.count).toBe(1)
  })

  it('keeps nothing that a guard refused, and nothing that did not happen', async () => {
    Object.assign(effects, { count: 0, isOpen: false })
    const url = await listening(await aBank())
    const key = aKey()
    expect(await send(`${url}/guarded`, { key })).toMatchObject({ status: 403 })
    effects.isOpen = true
    expect(await send(`${url}/guarded`, { key })).toMatchObject({ status: 201, isReplay: false })
    effects.count = 0
    const other = aKey()
    expect(await send(`${url}/again`, { key: other })).toMatchObject({ status: 503 })
    expect((await send(`${url}/again`, { key: other })).bytes.toString()).toBe(`run 2 of ${other}`)
  })
})
