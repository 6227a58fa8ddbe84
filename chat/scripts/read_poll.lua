-- A poll's definition, or what one person has voted in it.
--
-- KEYS[8] poll      hash: open, choices (how many), max, closes_at, definition
-- KEYS[9] ballots   hash: person -> ballot
-- ARGV[1] person    or '' for the definition
-- Returns {'ok', JSON}, '' when there is none; refused: unavailable.
-- All or none: reads only.
local gone = guard()
if gone then return gone end
if ARGV[1] ~= '' then return {'ok', redis.call('HGET', KEYS[9], ARGV[1]) or ''} end
return {'ok', redis.call('HGET', KEYS[8], 'definition') or ''}
