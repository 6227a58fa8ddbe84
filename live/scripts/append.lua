-- The prelude: put before every script of a show by the loader. It names the spine of the show, numbers
-- and appends to the log, keeps states and their versions, and answers a repeated command from its record.
--
-- KEYS (the spine; a script's own keys begin at KEYS[8]):
local LOG, META, STATES, VERSIONS, COUNTS, REPLIES, BEHAVIOUR =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
-- LOG        stream, ids <seq>-0. Fields: e event JSON without seq ('' when redacted or none) · a audience
--            bit · v state version · u '1' when it cuts the beat short · r seq of an entry to redact · s, of
--            viewers' comments only: rank in sampling, 1 shown before 4
-- META       hash: epoch, seq, version, generation, status, audiences, started_at …
-- STATES     hash: state key -> parts JSON, [{"a":bit,"d":{…},"counts":["*"]}, …]
-- VERSIONS   zset: state key -> version it changed at (one counter a show: META.version)
-- COUNTS     hash: '<state key>|<field>' -> integer
-- REPLIES    hash: '<who>:<key>' -> digest '\n' reply JSON; kept until the show's end + 1 day
-- BEHAVIOUR  stream of behaviour records, read by the recorder job
local LOG_MAX = 100000 -- entries; at 200 B each about 20 MB a show

local TIME = redis.call('TIME')
local NOW = TIME[1] * 1000 + math.floor(TIME[2] / 1000) -- ms; the store's clock decides

local function refused(code, retry_ms, message)
  return {'refused', code, retry_ms and tostring(retry_ms) or '', message}
end

-- A script that finds no show answers `unavailable`, never zero. With a generation, refuses a writer of
-- an older one.
local function guard(generation)
  local found = redis.call('HMGET', META, 'epoch', 'generation')
  if not found[1] then return refused('unavailable', 1000) end
  if generation and generation ~= '' and generation ~= found[2] then
    return refused('unavailable', 1000, 'stale generation')
  end
  return nil
end

-- For what viewers ask and nodes read: also `unavailable` while a reborn show is still being filled.
local function whole_guard(generation)
  local gone = guard(generation)
  if not gone and redis.call('HEXISTS', META, 'rebuilding') == 1 then return refused('unavailable', 300) end
  return gone
end

local function status() return redis.call('HGET', META, 'status') end

-- Mark a state as changed: gives it the show's next version.
local function touch_state(key)
  local version = redis.call('HINCRBY', META, 'version', 1)
  redis.call('ZADD', VERSIONS, version, key)
  return version
end

local function put_state(key, parts)
  redis.call('HSET', STATES, key, parts)
  return touch_state(key)
end

local function drop_state(key)
  redis.call('HDEL', STATES, key)
  return touch_state(key) -- a changed key without parts reads as gone
end

-- Counters of a state; the caller touches the state once after the last of them.
local function count(key, field, by) return redis.call('HINCRBY', COUNTS, key .. '|' .. field, by) end
local function set_count(key, field, to) redis.call('HSET', COUNTS, key .. '|' .. field, to) end
local function get_count(key, field) return tonumber(redis.call('HGET', COUNTS, key .. '|' .. field) or '0') end

-- Number the event and append it; the append is the publication. Returns its seq.
-- event: JSON object text beginning '{"type":'. Its time is the store's. rank: see field s; nil is never sampled.
local function append(bit, event, urgent, redacts, rank)
  local seq = redis.call('HINCRBY', META, 'seq', 1)
  local body = event
  if event ~= '' then body = '{"at":' .. string.format('%.0f', NOW) .. ',' .. string.sub(event, 2) end
  local entry = {LOG, 'MAXLEN', '~', LOG_MAX, seq .. '-0', 'e', body, 'a', bit,
    'v', redis.call('HGET', META, 'version') or '0', 'u', urgent and '1' or '', 'r', redacts or ''}
  if rank then
    entry[#entry + 1], entry[#entry + 2] = 's', rank
  end
  redis.call('XADD', unpack(entry))
  return seq
end

-- A behaviour record (JSON made in Python; not looked into here).
local function behave(record)
  if record and record ~= '' then
    redis.call('XADD', BEHAVIOUR, 'MAXLEN', '~', 200000, '*', 'b', record)
  end
end

-- The recorded answer to who:key. Returns nil (not seen), a refusal (other body), or {'ok', reply JSON, 'again'}.
local function recall(who, key, digest)
  if key == '' then return nil end
  local seen = redis.call('HGET', REPLIES, who .. ':' .. key)
  if not seen then return nil end
  local cut = string.find(seen, '\n', 1, true)
  if string.sub(seen, 1, cut - 1) ~= digest then return refused('key_reused') end
  return {'ok', string.sub(seen, cut + 1), 'again'}
end

local function remember(who, key, digest, reply)
  if key ~= '' then redis.call('HSET', REPLIES, who .. ':' .. key, digest .. '\n' .. reply) end
end
