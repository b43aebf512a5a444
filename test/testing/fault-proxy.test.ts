import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type FaultProxy, startFaultProxy } from '../../src/testing/test-kit.js'
import { freePort } from '../support/free-port.js'

let echo: EchoServer
let proxy: FaultProxy
let clients: Socket[]
beforeEach(async () => {
  clients = []
  echo = await startEchoServer()
  proxy = await startFaultProxy({ target: { host: '127.0.0.1', port: echo.port } })
})
afterEach(async () => {
  for (const client of clients) client.destroy()
  await proxy.stop()
  await echo.stop()
})

describe('a fault proxy that is left alone', () => {
  it('passes on what either side says', async () => {
    const client = await aClient()
    client.send('hello')
    await client.hears('hello')
    echo.ends[0]?.send(', you')
    await client.hears('hello, you')
  })

  it('passes on the end of either side, and what comes after the end of the other', async () => {
    const client = await aClient()
    client.send('last words')
    client.socket.end()
    await client.isOver('ended')
    expect(client.heard).toBe('last words')
    const second = await aClient()
    second.send('hello')
    await second.hears('hello')
    echo.ends[1]?.socket.end('goodbye')
    await second.isOver('ended')
    expect(second.heard).toBe('hellogoodbye')
  })

  it('passes on a reset of either side', async () => {
    const client = await aClient()
    client.send('hello')
    await client.hears('hello')
    client.socket.resetAndDestroy()
    await echo.ends[0]?.isOver('reset')
    const second = await aClient()
    second.send('hello')
    await second.hears('hello')
    echo.ends[1]?.socket.resetAndDestroy()
    await second.isOver('reset')
    await expect.poll(() => proxy.connections).toBe(0)
  })

  it('resets who wants to reach a server that is not there', async () => {
    const nowhere = await startFaultProxy({ target: { host: '127.0.0.1', port: await freePort() } })
    const client = await aClient(nowhere)
    await client.isOver('reset')
    expect(nowhere.connections).toBe(0)
    await nowhere.stop()
  })

  it('takes no more from a server than its client takes', async () => {
    const slow = await aClient()
    slow.send('hello')
    await slow.hears('hello')
    slow.socket.pause()
    const size = 64 * 1024 * 1024
    echo.ends[0]?.socket.write(Buffer.alloc(size, 'x'))
    const other = await aClient()
    for (let trips = 1; trips <= 100; trips += 1) {
      other.send('.')
      await other.hears('.'.repeat(trips))
    }
    expect(echo.ends[0]?.socket.writableLength).toBe(size)
    slow.socket.resume()
    await expect.poll(() => slow.heard.length, { timeout: 20_000 }).toBe('hello'.length + size)
  })

  it('says where it is in place of an address', () => {
    expect(proxy.through('postgres://me:secret@db.example:5432/shop?a=b')).toBe(
      `postgres://me:secret@127.0.0.1:${proxy.port}/shop?a=b`,
    )
    expect(proxy.through('redis://localhost')).toBe(`redis://127.0.0.1:${proxy.port}`)
  })

  it('ends every connection when it stops, and frees its port', async () => {
    const client = await aClient()
    client.send('hello')
    await client.hears('hello')
    const silenced = await aClient()
    const fault = proxy.arm({ kind: 'half-open' })
    silenced.send('hello?')
    await fault.fired
    await proxy.stop()
    await Promise.all([client.isOver(), silenced.isOver(), echo.ends[0]?.isOver()])
    expect(proxy.connections).toBe(0)
    const again = createServer().listen(proxy.port, proxy.host)
    await once(again, 'listening')
    again.close()
    proxy = await startFaultProxy({ target: { host: '127.0.0.1', port: echo.port } })
  })
})

describe('a connection that is cut', () => {
  it('ends on both sides, and the bytes are lost', async () => {
    const client = await aClient()
    client.send('one')
    await client.hears('one')
    const fault = proxy.arm({ kind: 'cut' })
    client.send('two')
    await fault.fired
    await client.isOver('ended')
    await echo.ends[0]?.isOver('ended')
    expect(echo.heard).toBe('one')
    expect(client.heard).toBe('one')
    await expect.poll(() => proxy.connections).toBe(0)
  })

  it('is replaced by a new one', async () => {
    const client = await aClient()
    const fault = proxy.arm({ kind: 'cut' })
    client.send('one')
    await fault.fired
    const second = await aClient()
    second.send('two')
    await second.hears('two')
    expect(echo.heard).toBe('two')
  })

  it('can be every connection, and every new one until healed', async () => {
    const [client, other] = [await aClient(), await aClient()]
    other.send('one')
    await other.hears('one')
    proxy.arm({ kind: 'cut', everywhere: true })
    client.send('two')
    await Promise.all([client.isOver('ended'), other.isOver('ended')])
    await (await aClient()).isOver('ended')
    proxy.heal()
    const third = await aClient()
    third.send('three')
    await third.hears('three')
    expect(echo.heard).toBe('onethree')
  })
})

describe('a connection that is reset', () => {
  it('fails on both sides, and the bytes are lost', async () => {
    const client = await aClient()
    client.send('one')
    await client.hears('one')
    const fault = proxy.arm({ kind: 'reset' })
    client.send('two')
    await fault.fired
    await client.isOver('reset')
    await echo.ends[0]?.isOver('reset')
    expect(echo.heard).toBe('one')
    expect(proxy.connections).toBe(0)
  })
})

describe('a connection that stalls', () => {
  it('lets nothing through in either direction until it is healed, and loses nothing', async () => {
    const client = await aClient()
    client.send('one,')
    await client.hears('one,')
    const fault = proxy.arm({ kind: 'stall' })
    client.send('two,')
    await fault.fired
    client.send('three,')
    echo.ends[0]?.send('from the server,')
    await aRoundTripOfAnother()
    expect(echo.ends[0]?.heard).toBe('one,')
    expect(client.heard).toBe('one,')
    proxy.heal()
    await echo.ends[0]?.hears('one,two,three,')
    await expect.poll(() => client.heard).toHaveLength('one,two,three,from the server,'.length)
    expect(client.heard).toContain('from the server,')
  })

  it('can be every connection, and every new one', async () => {
    const [client, other] = [await aClient(), await aClient()]
    const fault = proxy.arm({ kind: 'stall', everywhere: true })
    client.send('one')
    await fault.fired
    const late = await aClient()
    other.send('two')
    late.send('three')
    // Something else of this machine makes its way meanwhile.
    await aRoundTripOfAnother(await startFaultProxy({ target: { host: '127.0.0.1', port: echo.port } }))
    expect(echo.heard).toBe('ping')
    proxy.heal()
    await Promise.all([client.hears('one'), other.hears('two'), late.hears('three')])
  })

  it('keeps what it holds when another fault stalls everything', async () => {
    const [client, other] = [await aClient(), await aClient()]
    const first = proxy.arm({ kind: 'stall' })
    client.send('one')
    await first.fired
    const second = proxy.arm({ kind: 'stall', everywhere: true })
    other.send('two')
    await second.fired
    proxy.heal()
    await Promise.all([client.hears('one'), other.hears('two')])
  })

  it('loses nothing of what was under way when it began', async () => {
    const client = await aClient()
    client.send('hello')
    await client.hears('hello')
    echo.answers = () => ''
    const server = echo.ends[0]
    server?.socket.pause()
    const size = 64 * 1024 * 1024
    client.send('x'.repeat(size))
    const other = await aClient()
    for (let left = 0; left !== client.socket.writableLength; ) {
      left = client.socket.writableLength
      await aRoundTripOfAnother()
    }
    expect(client.socket.writableLength).toBeGreaterThan(0)
    const fault = proxy.arm({ kind: 'stall', everywhere: true, match: 'now' })
    other.send('now')
    await fault.fired
    // What the proxy has passed on before is read only now.
    server?.socket.resume()
    await expect.poll(() => server?.heard.length).toBeGreaterThan('hello'.length)
    await aRoundTripOfAnother(await startFaultProxy({ target: { host: '127.0.0.1', port: echo.port } }))
    proxy.heal()
    await expect.poll(() => server?.heard.length, { timeout: 20_000 }).toBe('hello'.length + size)
  })

  it('can still be cut', async () => {
    const [client, other] = [await aClient(), await aClient()]
    const stall = proxy.arm({ kind: 'stall', match: 'one' })
    client.send('one')
    await stall.fired
    client.send('more')
    await aRoundTripOfAnother()
    echo.heard = ''
    proxy.arm({ kind: 'cut', everywhere: true })
    other.send('two')
    await Promise.all([client.isOver('ended'), other.isOver('ended')])
    await expect.poll(() => proxy.connections).toBe(0)
    expect(echo.heard).toBe('')
  })

  it('holds back the end of a client too, and delivers it after what it said', async () => {
    const client = await aClient()
    client.send('one,')
    await client.hears('one,')
    const fault = proxy.arm({ kind: 'stall' })
    client.send('two')
    await fault.fired
    client.socket.destroy()
    await aRoundTripOfAnother()
    expect(echo.ends[0]?.over).toBeUndefined()
    proxy.heal()
    await echo.ends[0]?.isOver('ended')
    expect(echo.ends[0]?.heard).toBe('one,two')
    await expect.poll(() => proxy.connections).toBe(0)
  })

  it('holds back the end of a server too', async () => {
    const client = await aClient()
    client.send('one,')
    await client.hears('one,')
    const fault = proxy.arm({ kind: 'stall' })
    client.send('two')
    await fault.fired
    echo.ends[0]?.socket.end('bye')
    await aRoundTripOfAnother()
    expect(client.over).toBeUndefined()
    expect(client.heard).toBe('one,')
    proxy.heal()
    await client.isOver('ended')
    expect(client.heard).toBe('one,bye')
  })

  it.each(['client', 'server'] as const)('holds back the reset of a %s too', async (side) => {
    const client = await aClient()
    client.send('one')
    await client.hears('one')
    const ends = { client, server: echo.ends[0] ?? client }
    const fault = proxy.arm({ kind: 'stall' })
    client.send('two')
    await fault.fired
    ends[side].socket.resetAndDestroy()
    await aRoundTripOfAnother()
    const other = side === 'client' ? ends.server : client
    expect(other.over).toBeUndefined()
    proxy.heal()
    await other.isOver('reset')
    await expect.poll(() => proxy.connections).toBe(0)
  })
})

describe('a connection that is half-open', () => {
  it('has no server any more, and its client never learns of it', async () => {
    const client = await aClient()
    client.send('one')
    await client.hears('one')
    const fault = proxy.arm({ kind: 'half-open' })
    client.send('two')
    await fault.fired
    await echo.ends[0]?.isOver()
    client.send('three')
    client.socket.end()
    await aRoundTripOfAnother()
    proxy.heal()
    await aRoundTripOfAnother()
    expect(client.over).toBeUndefined()
    expect(client.heard).toBe('one')
    expect(echo.ends[0]?.heard).toBe('one')
  })

  it('can be every connection, and every new one until healed', async () => {
    const [client, other] = [await aClient(), await aClient()]
    other.send('one')
    await other.hears('one')
    const fault = proxy.arm({ kind: 'half-open', everywhere: true })
    client.send('two')
    await fault.fired
    const late = await aClient()
    for (const each of [other, late]) each.send('three')
    await echo.ends[0]?.isOver()
    proxy.heal()
    await aRoundTripOfAnother()
    for (const each of [client, other, late]) expect(each.over).toBeUndefined()
    expect(echo.heard).toBe('oneping')
  })
})

describe('an answer that is dropped', () => {
  it('is of a request that was carried out, and the connection is cut', async () => {
    const client = await aClient()
    const fault = proxy.arm({ kind: 'drop-answer' })
    client.send('one')
    await fault.fired
    expect(echo.heard).toBe('one')
    await client.isOver('ended')
    await echo.ends[0]?.isOver('ended')
    expect(client.heard).toBe('')
  })

  it('can leave the connection half-open', async () => {
    const client = await aClient()
    const fault = proxy.arm({ kind: 'drop-answer', leaves: 'half-open' })
    client.send('one')
    await fault.fired
    client.send('two')
    await echo.ends[0]?.isOver()
    proxy.heal()
    await aRoundTripOfAnother()
    expect(client.over).toBeUndefined()
    expect(client.heard).toBe('')
    expect(echo.heard).toBe('oneping')
  })

  it('may be of a request that comes in pieces', async () => {
    echo.answers = (heard) => (heard.endsWith('.') ? 'done' : '')
    const client = await aClient()
    const fault = proxy.arm({ kind: 'drop-answer', match: 'begin' })
    const long = `begin ${'x'.repeat(1024 * 1024)}`
    client.send(long)
    await expect.poll(() => echo.heard.length).toBe(long.length)
    expect(fault.timesFired).toBe(0)
    client.send('.')
    await client.isOver('ended')
    expect(echo.heard).toHaveLength(long.length + 1)
    expect(fault.timesFired).toBe(1)
  })

  it('is not dropped any more once the proxy is healed', async () => {
    echo.answers = (heard) => (heard.endsWith('.') ? 'done' : '')
    const client = await aClient()
    const fault = proxy.arm({ kind: 'drop-answer' })
    client.send('one')
    await expect.poll(() => echo.heard).toBe('one')
    proxy.heal()
    client.send('.')
    await client.hears('done')
    expect(fault.timesFired).toBe(0)
  })
})

describe('a fault', () => {
  it('fires once, at the next bytes', async () => {
    const client = await aClient()
    const fault = proxy.arm({ kind: 'cut' })
    expect(fault.timesFired).toBe(0)
    client.send('one')
    await client.isOver('ended')
    await aRoundTripOfAnother()
    expect(fault.timesFired).toBe(1)
  })

  it('fires as often as it is told to', async () => {
    const fault = proxy.arm({ kind: 'cut', times: 2 })
    for (let sent = 0; sent < 2; sent += 1) {
      const client = await aClient()
      client.send('one')
      await client.isOver('ended')
    }
    await aRoundTripOfAnother()
    expect(fault.timesFired).toBe(2)
  })

  it.each([
    ['text', 'com(mit)'],
    ['text beyond ASCII', 'naïve ✓'],
    ['a pattern', /com.mit.$/],
    ['a pattern with flags', /COM.MIT/gi],
  ])('waits for bytes that match %s, on whichever connection they come', async (_, match) => {
    const fault = proxy.arm({ kind: 'cut', match })
    const [first, second] = [await aClient(), await aClient()]
    first.send('commit ')
    await first.hears('commit ')
    second.send('com ')
    await second.hears('com ')
    expect(fault.timesFired).toBe(0)
    second.send('naïve ✓ and com(mit)')
    await second.isOver('ended')
    expect(echo.ends.map(({ heard }) => heard)).toEqual(['commit ', 'com '])
  })

  it('recognises what comes in two pieces', async () => {
    const client = await aClient()
    client.send('select; com')
    await client.hears('select; com')
    const fault = proxy.arm({ kind: 'cut', match: 'commit' })
    client.send('mit')
    await client.isOver('ended')
    expect(fault.timesFired).toBe(1)
  })

  it('does not fire at what has gone through before', async () => {
    const client = await aClient()
    client.send('commit')
    await client.hears('commit')
    const fault = proxy.arm({ kind: 'cut', match: 'commit' })
    client.send('; select')
    await client.hears('commit; select')
    expect(fault.timesFired).toBe(0)
  })

  it('lets others wait for their own bytes', async () => {
    const cut = proxy.arm({ kind: 'cut', match: 'two' })
    const reset = proxy.arm({ kind: 'reset', match: 'one' })
    const [first, second] = [await aClient(), await aClient()]
    first.send('one')
    await first.isOver('reset')
    second.send('two')
    await second.isOver('ended')
    expect([cut.timesFired, reset.timesFired]).toEqual([1, 1])
  })

  it('does not fire once it is disarmed', async () => {
    proxy.arm({ kind: 'cut' }).disarm()
    await aRoundTripOfAnother()
  })

  it('does not fire once the proxy is healed', async () => {
    proxy.arm({ kind: 'cut' })
    proxy.heal()
    await aRoundTripOfAnother()
  })

  it('does not fire at bytes on a connection that is lost', async () => {
    const client = await aClient()
    const first = proxy.arm({ kind: 'half-open' })
    client.send('one')
    await first.fired
    proxy.heal()
    const second = proxy.arm({ kind: 'cut', match: 'two' })
    client.send('two')
    await aRoundTripOfAnother()
    expect(second.timesFired).toBe(0)
  })
})

/** One end of a connection, and what it has heard. */
interface End {
  readonly socket: Socket
  readonly heard: string
  /** How the other side left, once it has. */
  readonly over: 'ended' | 'reset' | undefined
  send(text: string): void
  /** Waits until `text` is all that it has heard. */
  hears(text: string): Promise<void>
  /** Waits until it is over, as `how` says where it matters. */
  isOver(how?: 'ended' | 'reset'): Promise<void>
}

interface EchoServer {
  readonly port: number
  /** Its ends of all connections on which something came, in the order in which it did. */
  readonly ends: readonly End[]
  /** All that it has heard. */
  heard: string
  /** What it says to what it has just heard: the same. */
  answers: (heard: string) => string
  stop(): Promise<void>
}

async function startEchoServer(): Promise<EchoServer> {
  const ends: End[] = []
  const sockets = new Set<Socket>()
  const server: Server = createServer((socket) => {
    sockets.add(socket)
    const end = anEnd(socket)
    socket.once('data', () => ends.push(end))
    socket.on('data', (bytes) => {
      const heard = bytes.toString()
      running.heard += heard
      socket.write(running.answers(heard))
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const running = {
    port: (server.address() as AddressInfo).port,
    ends,
    heard: '',
    answers: (heard: string) => heard,
    async stop() {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
  return running
}

function anEnd(socket: Socket): End {
  let heard = ''
  let over: End['over']
  socket.setEncoding('utf8')
  socket.on('data', (text) => {
    heard += text
  })
  socket.on('end', () => {
    over = 'ended'
  })
  socket.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'ECONNRESET') over = 'reset'
  })
  return {
    socket,
    get heard() {
      return heard
    },
    get over() {
      return over
    },
    send: (text) => void socket.write(text),
    hears: (text) => expect.poll(() => heard, { timeout: 10_000, interval: 5 }).toBe(text),
    async isOver(how) {
      await expect.poll(() => over, { timeout: 10_000, interval: 5 }).toBeDefined()
      if (how !== undefined) expect(over).toBe(how)
    },
  }
}

async function aClient(through = proxy): Promise<End> {
  const socket = connect(through.port, through.host)
  clients.push(socket)
  const end = anEnd(socket)
  await once(socket, 'connect')
  return end
}

/** Shows that the proxy is at work, and that whatever was under way before has had its time. */
async function aRoundTripOfAnother(through = proxy): Promise<void> {
  const another = await aClient(through)
  const answers = echo.answers
  echo.answers = (heard) => heard
  another.send('ping')
  await another.hears('ping')
  echo.answers = answers
  another.socket.destroy()
  if (through !== proxy) await through.stop()
}
