# Writes the files IN (a list), one after the other, into C source OUT as:
# const unsigned char NAME[]; const size_t NAME_size.
set(HEX "")
foreach(FILE IN LISTS IN)
  file(READ ${FILE} PART HEX)
  string(APPEND HEX "${PART}")
endforeach()
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," BYTES "${HEX}")
string(CONCAT TEXT "#include \"broker/queue_lua.h\"\n"
  "const unsigned char ${NAME}[] = {${BYTES}0};\n"
  "const size_t ${NAME}_size = sizeof ${NAME} - 1;\n")
file(WRITE ${OUT} "${TEXT}")
