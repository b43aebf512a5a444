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

/**
 * What all scripts share: the time, a reader and a writer of records.
 *
 * Scripts run atomically, name their one key, and take the time from the server, which replicates their effects.
 */
const COMMON = `
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function digits(ms)
  return string.format('%016.0f', ms)
end

local function read(text)
  local state, at, fence, token, fingerprint, meta_length, head_length, letters, start =
    string.match(text, '^${RECORD_FORMAT}([RC])(%d+) (%d+) (%S+) (%S+) (%d+) (%d+) (..)\\n()')
  if not state then return nil end
  return {
    state = state, at = tonumber(at), fence = tonumber(fence), token = token, fingerprint = fingerprint,
    meta = string.sub(text, start, start + meta_length - 1)
  }
end

local function write(state, at, fence, token, fingerprint, meta, head, letters, body, ttl)
  local head_part = table.concat({
    '${RECORD_FORMAT}' .. state .. digits(at), string.format('%.0f', fence), token, fingerprint, #meta, #head, letters
  }, ' ')
  redis.call('SET', KEYS[1], table.concat({ head_part, '\\n', meta, head, body }), 'PX', string.format('%.0f', ttl))
end

local text = redis.call('GET', KEYS[1])
local record = text and read(text)
if text and not record then return redis.error_reply('${UNKNOWN_FORMAT}') end
`

/**
 * Claims the record.
 * KEYS[1] record. ARGV[1] token, ARGV[2] fingerprint, ARGV[3] lease in ms, ARGV[4] ttl in ms, ARGV[5] `1` to take a
 * lapsed claim over, ARGV[6] meta.
 * Returns the fence when it was acquired, else the time in ms and the record.
 */
export const CLAIM = `${COMMON}
local fence = 1
local meta = ARGV[6]
if record then
  local mine = record.state == 'R' and record.token == ARGV[1]
  local takeable = record.state == 'R' and record.at <= now and ARGV[5] == '1' and record.fingerprint == ARGV[2]
  if not mine and not takeable then return { now, text } end
  fence = mine and record.fence or record.fence + 1
  meta = record.meta
end
local lease, ttl = tonumber(ARGV[3]), tonumber(ARGV[4])
write('R', now + lease, fence, ARGV[1], ARGV[2], meta, '', '--', '', math.max(lease, ttl))
return fence
`

/**
 * Makes the lease end later, while our token holds the record.
 * KEYS[1] record. ARGV[1] token, ARGV[2] lease in ms.
 * Returns 1 when renewed, 0 when the claim was lost.
 */
export const RENEW = `${COMMON}
if not record or record.state ~= 'R' or record.token ~= ARGV[1] then return 0 end
redis.call('SETRANGE', KEYS[1], ${TIME_OFFSET}, digits(now + ARGV[2]))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
`

/**
 * Keeps the outcome, while our token holds the record.
 * KEYS[1] record. ARGV[1] token, ARGV[2] head, ARGV[3] letters, ARGV[4] body, ARGV[5] ttl in ms.
 * Returns 1 when it is kept, by this call or by an earlier one of the same token, 0 when the claim was lost.
 */
export const COMPLETE = `${COMMON}
if not record or record.token ~= ARGV[1] then return 0 end
if record.state == 'R' then
  write('C', now, record.fence, ARGV[1], record.fingerprint, record.meta, ARGV[2], ARGV[3], ARGV[4], ARGV[5])
end
return 1
`

/**
 * Gives the claim back: a first claim is removed, a taken-over one lapses and is held by nobody.
 * KEYS[1] record. ARGV[1] token.
 * Returns 1 when released, 0 when the claim was lost.
 */
export const RELEASE = `${COMMON}
if not record or record.state ~= 'R' or record.token ~= ARGV[1] then return 0 end
if record.fence == 1 then return redis.call('DEL', KEYS[1]) end
write('R', 0, record.fence, '-', record.fingerprint, record.meta, '', '--', '', redis.call('PTTL', KEYS[1]))
return 1
`

/**
 * Reads the record.
 * KEYS[1] record.
 * Returns the time in ms, the record and the ms until it expires, or nothing.
 */
export const FIND = `${COMMON}
if not record then return false end
return { now, text, redis.call('PTTL', KEYS[1]) }
`

/**
 * Ends an unknown record without its token.
 * KEYS[1] record. ARGV[1] \`release\` or \`outcome\`, ARGV[2] head, ARGV[3] letters, ARGV[4] body, ARGV[5] ttl in ms.
 * Returns 1 when settled, 0 when the record is not unknown.
 */
export const SETTLE = `${COMMON}
if not record or record.state ~= 'R' or record.at > now then return 0 end
if ARGV[1] == 'release' then return redis.call('DEL', KEYS[1]) end
write('C', now, record.fence, '-', record.fingerprint, record.meta, ARGV[2], ARGV[3], ARGV[4], ARGV[5])
return 1
`
