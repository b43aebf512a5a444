/**
 * A record is one string. Its first line is `1`, its format; `R` for running or `C` for completed; 13 digits with the end of
 * the lease or the time of completion, in epoch milliseconds by the server's clock; token (`-` when nobody holds it), fence,
 * fingerprint and `meta` as a list in JSON, each after a space. Completion appends the outcome: a line with two letters
 * (`s`ucceeded or `f`ailed, `b`ody, compressed body `z` or `t`ombstone) and the length of `head` in bytes, and after a space the
 * length that a compressed body had; then `head` and the body's bytes.
 */
export const RECORD_FORMAT = '1'

/** What a script answers with when it meets a record that it cannot read. */
export const UNKNOWN_FORMAT = 'ONCEKEY_UNKNOWN_FORMAT'

/** Where the 13 digits and the token begin, counted from 0. Lua counts from 1. */
export const TIME_START = 2
export const TOKEN_START = 16

/** Once a command answers with so many bytes of records, it answers with no more of them. */
const MOST_BYTES = 65_536

/** What a claim is answered with that is left for a command of its own. No fence, and never the answer of one alone. */
export const LEFT_OUT = 0

/** Reads the server's clock, in ms. Scripts run atomically, and their effects are replicated, not their commands. */
const NOW = `
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)`

/** Takes the first line of the record apart. `after_token` is where the fence begins, which is kept with what follows. */
const MATCH = `
local state, at, token, after_token, fence, fingerprint, meta_start = string.match(
  text, '^${RECORD_FORMAT}([RC])(%d+) (%S+) ()(%d+) (%S+) ()'
)`

/** Takes the record apart, in a script of one key. Scripts that found nothing have returned before. */
const READ = `${MATCH}
if not state then return redis.error_reply('${UNKNOWN_FORMAT}') end`

/** A point in time as a record holds it: never more than 13 digits, which last until 2286. */
const digits = (ms: string): string => `string.format('%013.0f', math.min(${ms}, 9999999999999))`

/**
 * Claims records, each for itself: one that cannot be read does not keep the others from being claimed.
 * KEYS records. ARGV two for each: lease in ms, ttl in ms and no shorter, and `1` to take a lapsed claim over, else `0`,
 * with spaces between; and the claim: token, fence 1, fingerprint and meta as in a record, and a line feed.
 * Returns the time in ms, then for each the fence when it was acquired, else the record, or an error. Behind many bytes of
 * records a claim that would find another one is left out, and nothing of it is done: the server would do nothing else
 * for as long as it takes to copy them all.
 */
export const CLAIM = `${NOW}
local replies = { now }
local answered = 0
local limits, ttl, take_over, beginning
for index, key in ipairs(KEYS) do
  local claim = ARGV[2 * index]
  -- Mostly those of the claim before.
  if ARGV[2 * index - 1] ~= limits then
    local lease
    limits = ARGV[2 * index - 1]
    lease, ttl, take_over = string.match(limits, '^(%S+) (%S+) (%S)$')
    beginning = '${RECORD_FORMAT}R' .. ${digits('now + lease')} .. ' '
  end
  local text = ${LEFT_OUT}
  if answered < ${MOST_BYTES} or redis.call('PTTL', key) == -2 then text = redis.pcall('GET', key) end
  local reply = text
  if not text then
    redis.call('SET', key, beginning .. claim, 'PX', ttl)
    reply = 1
  elseif type(text) == 'string' and string.sub(text, 1, 2) ~= '${RECORD_FORMAT}C' then
    ${MATCH}
    local my_token, my_fingerprint = string.match(claim, '^(%S+) %d+ (%S+) ')
    local mine = token == my_token
    if not state then
      reply = redis.error_reply('${UNKNOWN_FORMAT}')
    elseif mine or (tonumber(at) <= now and take_over == '1' and fingerprint == my_fingerprint) then
      reply = mine and tonumber(fence) or tonumber(fence) + 1
      redis.call(
        'SET', key,
        beginning .. my_token .. ' ' .. reply .. ' ' .. fingerprint .. ' ' .. string.sub(text, meta_start),
        'PX', ttl
      )
    end
  end
  if type(reply) == 'string' then answered = answered + #reply end
  replies[index + 1] = reply
end
return replies
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
redis.call('SETRANGE', KEYS[1], ${TIME_START}, ${digits('now + ARGV[2]')})
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
`

/**
 * Keeps outcomes, each while its token holds the record.
 * KEYS records. ARGV three for each: token, ttl in ms, and the outcome as a record holds it.
 * Returns the time in ms, then for each 1 when it is kept, by this call or by an earlier one of the same token, 0 when the
 * claim was lost, or an error.
 */
export const COMPLETE = `${NOW}
local replies = { now }
local beginning = '${RECORD_FORMAT}C' .. ${digits('now')}
for index, key in ipairs(KEYS) do
  local token = ARGV[3 * index - 2] .. ' '
  local text = redis.pcall('GET', key)
  local reply = 0
  if text and type(text) ~= 'string' then
    reply = text
  elseif text and string.sub(text, 1, 1) ~= '${RECORD_FORMAT}' then
    reply = redis.error_reply('${UNKNOWN_FORMAT}')
  elseif text and string.sub(text, ${TOKEN_START + 1}, ${TOKEN_START} + #token) == token then
    if string.sub(text, 2, 2) == 'C' then
      -- Whoever repeats it may wait for replicas, and WAIT knows only what its own connection wrote.
      redis.call('SETRANGE', key, 0, '${RECORD_FORMAT}')
    else
      redis.call(
        'SET', key,
        beginning .. string.sub(text, ${TOKEN_START}) .. ARGV[3 * index],
        'PX', ARGV[3 * index - 1]
      )
    end
    reply = 1
  end
  replies[index + 1] = reply
end
return replies
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
  '${RECORD_FORMAT}R' .. ${digits('0')} .. ' - ' .. string.sub(text, after_token),
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
 * KEYS[1] record. ARGV[1] `release` to remove the record, or ttl in ms, and ARGV[2] the outcome as a record holds it.
 * Returns 1 when settled, 0 when the record is not unknown.
 */
export const SETTLE = `${NOW}
local text = redis.call('GET', KEYS[1])
if not text then return 0 end
${READ}
if state ~= 'R' or tonumber(at) > now then return 0 end
if ARGV[1] == 'release' then return redis.call('DEL', KEYS[1]) end
redis.call(
  'SET', KEYS[1],
  '${RECORD_FORMAT}C' .. ${digits('now')} .. ' - ' .. string.sub(text, after_token) .. ARGV[2],
  'PX', ARGV[1]
)
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

/**
 * Writes what `READ_PROBE` looks for.
 * KEYS any. ARGV[1] value, ARGV[2] ttl in ms.
 */
export const PROBE = `
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
`

/**
 * Reads what `PROBE` wrote, and removes it.
 * KEYS[1] one of its keys.
 * Returns the value, or nothing.
 */
export const READ_PROBE = `
local value = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return value
`
