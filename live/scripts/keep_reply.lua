-- Purpose: answer a repeated HTTP write (Idempotency-Key) from the record of the first.
-- KEYS[1]  the record of one caller's key
-- ARGV[1]  digest of method, path and body
-- ARGV[2]  ms for which a request may be under way before its key is free again
-- Returns: 'new' (go on; the key is taken) · 'running' · the kept answer ·
--          {'refused','key_reused'} when the body was another
-- All or none: takes the key or changes nothing.
local seen = redis.call('HMGET', KEYS[1], 'digest', 'answer')
if not seen[1] then
  redis.call('HSET', KEYS[1], 'digest', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 'new'
end
if seen[1] ~= ARGV[1] then return {'refused', 'key_reused', '', 'This key was used before with another body.'} end
return seen[2] or 'running'
