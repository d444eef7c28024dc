#include "tools/fleet_view.h"

#include <stdlib.h>

enum status fleet_view(struct queue_sync *q, struct queue_leader *leader, json_t **record,
                       struct error *e)
{
    char *text;
    json_error_t why;
    *record = NULL;
    try(queue_admin_fleet(q, leader, &text, e));
    if (text == NULL) return OK;
    *record = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    free(text);
    if (json_is_object(*record)) return OK;
    json_decref(*record);
    *record = NULL;
    return error_set(e, ERR_IO, "bad_record", "what the leader said of its fleet cannot be read");
}

const char *fleet_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

json_int_t fleet_number(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}
