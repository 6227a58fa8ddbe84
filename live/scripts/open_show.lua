-- Opens a show's keys: a new epoch, sequence and version at 0. A show already open is left as it is; what is of
-- an older generation (a store that came back from the past) is dropped and opened anew.
--
-- KEYS  the spine
-- ARGV  1 epoch (random text, used only when opened)
--       2 generation (from PostgreSQL)
--       3 status
--       4… further META fields: name, value, name, value …
-- Returns {'ok', 1 opened | 0 was open, epoch}
-- All or none. It is the one script without guard(): it makes what guard() asks for.
local found = redis.call('HMGET', META, 'epoch', 'generation')
if found[1] and tonumber(found[2]) >= tonumber(ARGV[2]) then return {'ok', 0, found[1]} end
redis.call('DEL', LOG, META, STATES, VERSIONS, COUNTS, REPLIES)
redis.call('HSET', META, 'epoch', ARGV[1], 'seq', 0, 'version', 0, 'generation', ARGV[2], 'status', ARGV[3])
for at = 4, #ARGV - 1, 2 do redis.call('HSET', META, ARGV[at], ARGV[at + 1]) end
return {'ok', 1, ARGV[1]}
