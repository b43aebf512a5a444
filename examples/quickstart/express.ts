import express from 'express'
import { Redis } from 'ioredis'
import { idempotency } from 'oncekey/express'
import { redisStore } from 'oncekey/redis'

const app = express()
const once = idempotency({
  store: redisStore(new Redis({ socketTimeout: 5000 })),
  scope: (req) => String(req.headers['x-account'] ?? ''), // who the caller is, once you have authenticated it
  ttl: '24h',
})

app.use(express.json())
app.post('/payments', once({ required: true, ttl: '7d' }), (_req, res) => {
  res.status(201).json({ id: 'p-1', status: 'accepted' })
})

app.listen(3000)
