import Router from '@koa/router'
import Koa from 'koa'
import bodyParser from 'koa-bodyparser'
import { protect } from './protect.js'

interface Payment {
  readonly amount: number
}

let payments = 0
const router = new Router()
router.post('/accounts/:id/payments', protect({ required: true, ttl: '7d' }), (ctx) => {
  const { amount } = ctx.request.body as Payment
  if (amount > 1000) ctx.throw(402, 'That is more than you have')
  ctx.status = 201
  ctx.body = { id: `p-${++payments}`, amount }
})

export const app = new Koa()
app.use(async (ctx, next) => {
  ctx.state.account = ctx.get('x-account') // who the caller is, once you have authenticated it
  await next()
})
app.use(bodyParser())
app.use(router.routes())
