import { createIdempotency } from 'oncekey'

const { run } = createIdempotency()
const send = async (invoice: { amount: number }) => ({ sent: invoice.amount })
const receipt = await run({ scope: 'acme', key: 'invoice-42', input: { amount: 500 } }, () =>
  send({ amount: 500 }),
)

console.log(receipt)
