-- Fill a reborn show's talk from the durable record: what is pinned, announced and who is muted.
-- The old comments' numbers mean nothing in the new epoch: a pinned one is held under the number 0.
--
-- KEYS[8] mutes     hash: public id -> ms until which the viewer may not comment
-- KEYS[9] pinned    string: seq of the pinned comment
-- KEYS[10] hidden   set: seqs of hidden comments; those of an older epoch are dropped
-- ARGV[1] pinned state's data as JSON, {} for none
-- ARGV[2] announcement state's data as JSON, {} for none
-- ARGV[3 …] pairs of public id and ms
-- Returns {'ok', 1}; refused: unavailable.
-- All or none. A mute or announcement set since the rebirth stays.
local gone = guard()
if gone then return gone end
redis.call('DEL', KEYS[9], KEYS[10])
if ARGV[1] ~= '{}' then
  redis.call('SET', KEYS[9], '0')
  put_state('pinned', '[{"a":0,"d":' .. ARGV[1] .. '}]')
end
if ARGV[2] ~= '{}' and redis.call('HEXISTS', STATES, 'announcement') == 0 then
  put_state('announcement', '[{"a":0,"d":' .. ARGV[2] .. '}]')
end
for index = 3, #ARGV, 2 do redis.call('HSETNX', KEYS[8], ARGV[index], ARGV[index + 1]) end
return {'ok', 1}
