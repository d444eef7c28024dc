module penstock

go 1.18

require (
	github.com/gomodule/redigo v1.8.3
	github.com/vmihailenco/msgpack/v5 v5.3.5
)
