import { randomUUID } from 'node:crypto'
import { buildBank } from './bank.js'
import { loseTransfer, OPERATOR } from './console.js'
import { openLedger } from './ledger.js'

/** Starts the bank, shows what a retry does, and goes on serving for your own requests. */
async function demo(): Promise<void> {
  const bank = await buildBank(await openLedger())
  const url = await bank.listen({ port: Number(process.env.PORT ?? 3000), host: '127.0.0.1' }).catch(() =>
    // The usual port is taken: any other will do.
    bank.listen({ port: 0, host: '127.0.0.1' }),
  )

  const key = `demo-${randomUUID().slice(0, 8)}`
  const curl = (options: { readonly key?: string | undefined; readonly amount: number }): string =>
    [
      `curl -si ${url}/transfers -H 'Authorization: Bearer alice' -H 'Content-Type: application/json'`,
      ...(options.key === undefined ? [] : [`-H 'Idempotency-Key: ${options.key}'`]),
      `-d '{"from":"alice","to":"bob","amount":${options.amount}}'`,
    ].join(' ')
  const send = async (options: { readonly key?: string; readonly amount: number }): Promise<string> => {
    const answer = await fetch(`${url}/transfers`, {
      method: 'POST',
      headers: {
        authorization: 'Bearer alice',
        'content-type': 'application/json',
        ...(options.key !== undefined && { 'idempotency-key': options.key }),
      },
      body: JSON.stringify({ from: 'alice', to: 'bob', amount: options.amount }),
    })
    const replayed = answer.headers.has('idempotent-replayed') ? ', Idempotent-Replayed: true' : ''
    return `${answer.status}${replayed} ${await answer.text()}`
  }

  console.log(
    `Open ${url} in a browser, and press Pay. It is a small bank; Alice and Bob have 100.00 each.\n`,
  )
  console.log('The first request moves the money:')
  console.log(`  ${await send({ key, amount: 500 })}`)
  console.log('A retry gets the same transfer, and moves nothing:')
  console.log(`  ${await send({ key, amount: 500 })}`)
  console.log('Another amount under the same key is refused:')
  console.log(`  ${await send({ key, amount: 700 })}`)
  console.log('Two at once move it once: the second is refused, or gets the same answer:')
  const both = { key: `${key}-both`, amount: 100 }
  for (const answer of await Promise.all([send(both), send(both)])) console.log(`  ${answer}`)
  console.log('A transfer without a key is refused:')
  console.log(`  ${await send({ amount: 500 })}`)
  const accounts = await bank.inject({ url: '/accounts', headers: { authorization: 'Bearer alice' } })
  console.log(`The accounts, in cents:\n  ${accounts.payload}\n`)

  console.log('Try it yourself. The first line is a transfer of your own; send it twice:')
  console.log(curl({ key: 'my-first-transfer', amount: 500 }))
  console.log('Another amount under the same key:')
  console.log(curl({ key: 'my-first-transfer', amount: 700 }))
  console.log('Two at once:')
  console.log(
    `${curl({ key: 'two-at-once', amount: 100 })} & ${curl({ key: 'two-at-once', amount: 100 })}; wait`,
  )
  console.log('Without a key:')
  console.log(curl({ amount: 500 }))
  console.log('The accounts:')
  console.log(`curl -s ${url}/accounts -H 'Authorization: Bearer alice'`)
  console.log('What became of all these requests, as Prometheus reads it:')
  console.log(`curl -s ${url}/metrics`)
  const lost = await loseTransfer(bank)
  console.log(`
The operator's console is at ${url}/console (name ${OPERATOR.name}, password ${OPERATOR.password}). There you find a
transfer of 25.00 whose process has died. Until you settle or release it there, its retries are refused:`)
  console.log(curl({ key: lost.key, amount: lost.order.amount }))

  console.log('\nStop it with Ctrl+C.')

  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => {
      bank.close().catch((error: unknown) => console.error(error))
    })
}

await demo()
