/**
 * A record is one string: `1`, its format; `R` for running or `C` for completed; 16 digits with the end of the lease or
 * the time of completion, in epoch milliseconds by the server's clock; fence, token (`-` when nobody holds it),
 * fingerprint, the length of `meta` and of `head` in bytes, and two letters about the outcome (`s`ucceeded or `f`ailed,
 * `b`ody or `t`ombstone; `--` while it runs), each after a space; a line feed; then `meta`, `head` and the body's bytes.
 */
export const RECORD_FORMAT = '1'

/** What a script answers with when it meets a record that it cannot read. */
export const UNKNOWN_FORMAT = 'ONCEKEY_UNKNOWN_FORMAT'

/** Where the 16 digits begin, counted from 0. */
const TIME_OFFSET = 2

/** Reads the server's clock, in ms. Scripts run atomically, and their effects are replicated, not their commands. */
const NOW = `
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)`

/**
 * Takes the record apart. `middle` is fence, token, fingerprint and the length of `meta`, which a completion keeps; `start`
 * is where `meta` begins. Scripts that found nothing have returned before.
 */
const READ = `
local state, at, middle, fence, token, fingerprint, meta_length, start = string.match(
  text, '^${RECORD_FORMAT}([RC])(%d+)( (%d+) (%S+) (%S+) (%d+)) %d+ ..\\n()'
)
if not state then return redis.error_reply('${UNKNOWN_FORMAT}') end
local meta = string.sub(text, start, start + meta_length - 1)`

/** A point in time as a record holds it. */
const digits = (ms: string): string => `string.format('%016.0f', ${ms})`

/** Completes the record with the head, letters, body and ttl in ms that are the arguments from 2 to 5. */
const writeOutcome = (middle: string): string => `
redis.call(
  'SET', KEYS[1],
  '${RECORD_FORMAT}C' .. ${digits('now')} .. ${middle} .. ' ' .. #ARGV[2] .. ' ' .. ARGV[3] .. '\\n'
    .. meta .. ARGV[2] .. ARGV[4],
  'PX', ARGV[5]
)`

/**
 * Claims the record.
 * KEYS[1] record. ARGV[1] token, ARGV[2] fingerprint, ARGV[3] lease in ms, ARGV[4] ttl in ms and no shorter,
 * ARGV[5] `1` to take a lapsed claim over, ARGV[6] meta.
 * Returns the fence when it was acquired, else the time in ms and the record.
 */
export const CLAIM = `${NOW}
local text = redis.call('GET', KEYS[1])
local held, kept = 1, ARGV[6]
if text then
  ${READ}
  local mine = state == 'R' and token == ARGV[1]
  local takeable = state == 'R' and tonumber(at) <= now and ARGV[5] == '1' and fingerprint == ARGV[2]
  if not mine and not takeable then return { now, text } end
  held = mine and tonumber(fence) or tonumber(fence) + 1
  kept = meta
end
redis.call(
  'SET', KEYS[1],
  '${RECORD_FORMAT}R' .. ${digits('now + ARGV[3]')} .. ' ' .. held .. ' ' .. ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. #kept .. ' 0 --\\n' .. kept,
  'PX', ARGV[4]
)
return held
`

/**
 * Makes the lease end later, while our token holds the record.
 * KEYS[1] record. ARGV[1] token, ARGV[2] lease in ms.
 * Returns 1 when renewed, 0 when the claim was lost.
 */
export const RENEW = `${NOW}
local text = redis.call('GET', KEYS[1])
if not text then return 0 end
${READ}
if state ~= 'R' or token ~= ARGV[1] then return 0 end
redis.call('SETRANGE', KEYS[1], ${TIME_OFFSET}, ${digits('now + ARGV[2]')})
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
`

/**
 * Keeps the outcome, while our token holds the record.
 * KEYS[1] record. ARGV[1] token, ARGV[2] head, ARGV[3] letters, ARGV[4] body, ARGV[5] ttl in ms.
 * Returns 1 when it is kept, by this call or by an earlier one of the same token, 0 when the claim was lost.
 */
export const COMPLETE = `
local text = redis.call('GET', KEYS[1])
if not text then return 0 end
${READ}
if token ~= ARGV[1] then return 0 end
if state == 'C' then
  -- Whoever repeats it may wait for replicas, and WAIT knows only what its own connection wrote.
  redis.call('SETRANGE', KEYS[1], 0, '${RECORD_FORMAT}')
  return 1
end
${NOW}
${writeOutcome('middle')}
return 1
`

/**
 * Gives the claim back: a first claim is removed, a taken-over one lapses and is held by nobody.
 * KEYS[1] record. ARGV[1] token.
 * Returns 1 when released, 0 when the claim was lost.
 */
export const RELEASE = `
local text = redis.call('GET', KEYS[1])
if not text then return 0 end
${READ}
if state ~= 'R' or token ~= ARGV[1] then return 0 end
if fence == '1' then return redis.call('DEL', KEYS[1]) end
redis.call(
  'SET', KEYS[1],
  '${RECORD_FORMAT}R' .. ${digits('0')} .. ' ' .. fence .. ' - ' .. fingerprint .. ' ' .. meta_length .. ' 0 --\\n' .. meta,
  'PX', redis.call('PTTL', KEYS[1])
)
return 1
`

/**
 * Reads the record.
 * KEYS[1] record.
 * Returns the time in ms, the record and the ms until it expires, or nothing.
 */
export const FIND = `${NOW}
local text = redis.call('GET', KEYS[1])
if not text then return false end
${READ}
return { now, text, redis.call('PTTL', KEYS[1]) }
`

/**
 * Ends an unknown record without its token.
 * KEYS[1] record. ARGV[1] `release` or `outcome`, ARGV[2] head, ARGV[3] letters, ARGV[4] body, ARGV[5] ttl in ms.
 * Returns 1 when settled, 0 when the record is not unknown.
 */
export const SETTLE = `${NOW}
local text = redis.call('GET', KEYS[1])
if not text then return 0 end
${READ}
if state ~= 'R' or tonumber(at) > now then return 0 end
if ARGV[1] == 'release' then return redis.call('DEL', KEYS[1]) end
${writeOutcome("' ' .. fence .. ' - ' .. fingerprint .. ' ' .. meta_length")}
return 1
`

/**
 * Removes a record that does not run.
 * KEYS[1] record.
 * Returns 1 when removed, 0 when there is none or it is running.
 */
export const REMOVE = `${NOW}
local text = redis.call('GET', KEYS[1])
if not text then return 0 end
${READ}
if state == 'R' and tonumber(at) > now then return 0 end
return redis.call('DEL', KEYS[1])
`
