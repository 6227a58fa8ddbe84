-- Mark a reborn show's keys as filled again from the tables.
--
-- KEYS  the spine (prelude)
-- ARGV[1] generation it was filled in
-- Returns {'ok', 1}; refused: unavailable (also when another generation is here).
-- All or none.
local gone = guard(ARGV[1])
if gone then return gone end
redis.call('HDEL', META, 'rebuilding')
return {'ok', 1}
