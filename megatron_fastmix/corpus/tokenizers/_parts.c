/* The table of parts of text in C: what part_cache.py does, without an object for every part.

   Text is walked as UTF-8. A byte of 128 or more belongs to a character above 127, and parts are cut
   between ASCII characters only, so bytes tell as much as characters. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 1 << 16,      /* of the hash table of a generation, a power of two */
    MAX_PARTS = 1 << 15,  /* parts that a generation holds: half of its slots stay free */
    KEY_BYTES = 1 << 19,  /* text of its parts */
    ID_COUNT = 1 << 17,   /* ids of its parts */
    LONGEST_KEPT = 256,   /* bytes; a longer part hardly comes again */
    WINDOW = 8192         /* parts that are looked up before those not found are encoded */
};

#define PENDING UINT32_MAX /* count of an entry whose `ids` is its number among those to encode */
#define DEAD UINT32_MAX    /* `ids` of such an entry that was never encoded */

typedef struct {
    uint64_t hash; /* 0: free */
    uint32_t key, length, ids, count;
} Entry;

typedef struct {
    Entry *entries;
    char *keys;
    int32_t *ids;
    uint32_t parts, key_bytes, id_count;
    int full;
} Generation;

typedef struct {
    int32_t *items;
    size_t length, capacity;
} Ids;

/* A part of the window: its ids, or its number among those to encode, else -1, and its entry where
   it is to be kept. */
typedef struct {
    const int32_t *ids;
    size_t count;
    Py_ssize_t missing;
    Entry *entry;
    const char *text;
    size_t length;
} Found;

typedef struct {
    PyObject ob_base;
    unsigned char kind[256]; /* of each byte: characters of one kind are not parted */
    uint32_t max_parts;
    int item_size; /* bytes of an id in what `encode` appends: 2 or 4 */
    Generation now, before;
    Found *window;  /* (WINDOW,) */
    size_t *starts; /* (WINDOW + 1,) where the ids of each encoded part begin in `fresh` */
    Ids fresh;
    int busy; /* `encode_parts` must not come back here: the window is in use */
} Table;

enum { SPACE, NEWLINE, HIGH, FIRST_KIND };

static int reserve(Ids *ids, size_t more)
{
    if (more > (SIZE_MAX / sizeof(int32_t) - ids->length) / 2) {
        PyErr_NoMemory();
        return -1;
    }
    if (ids->length + more > ids->capacity) {
        size_t capacity = (ids->length + more) / 2 * 3 + 64;
        int32_t *items = realloc(ids->items, capacity * sizeof(int32_t));
        if (items == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        ids->items = items;
        ids->capacity = capacity;
    }
    return 0;
}

static uint64_t hash_of(const char *text, size_t length)
{
    uint64_t hash = 0x9E3779B97F4A7C15u ^ length;
    while (length) {
        uint64_t word = 0;
        size_t size = length < 8 ? length : 8;
        memcpy(&word, text, size);
        hash = (hash ^ word) * 0xFF51AFD7ED558CCDu;
        hash ^= hash >> 32;
        text += size;
        length -= size;
    }
    return hash ? hash : 1;
}

/* The slot of a part, or the free one where it belongs. */
static Entry *find(const Generation *generation, uint64_t hash, const char *text, size_t length)
{
    size_t slot = hash & (SLOTS - 1);
    for (;; slot = (slot + 1) & (SLOTS - 1)) {
        Entry *entry = &generation->entries[slot];
        if (entry->hash == 0)
            return entry;
        if (entry->hash == hash && entry->length == length
            && memcmp(generation->keys + entry->key, text, length) == 0)
            return entry;
    }
}

/* Takes a free slot for a part; NULL where it cannot be kept. */
static Entry *claim(Table *table, Entry *entry, uint64_t hash, const char *text, size_t length)
{
    Generation *now = &table->now;
    if (now->parts >= table->max_parts || now->key_bytes + length > KEY_BYTES) {
        now->full = 1;
        return NULL;
    }
    *entry = (Entry){hash, now->key_bytes, (uint32_t)length, DEAD, PENDING};
    memcpy(now->keys + now->key_bytes, text, length);
    now->key_bytes += (uint32_t)length;
    now->parts++;
    return entry;
}

static void fill(Table *table, Entry *entry, const int32_t *ids, size_t count)
{
    Generation *now = &table->now;
    if (now->id_count + count > ID_COUNT) {
        now->full = 1;
        entry->ids = DEAD;
        return;
    }
    entry->ids = now->id_count;
    entry->count = (uint32_t)count;
    if (count)
        memcpy(now->ids + now->id_count, ids, count * sizeof(int32_t));
    now->id_count += (uint32_t)count;
}

/* What has not come again since the last time is forgotten. */
static void age(Table *table)
{
    Generation older = table->before;
    table->before = table->now;
    memset(older.entries, 0, SLOTS * sizeof(Entry));
    older.parts = older.key_bytes = older.id_count = 0;
    older.full = 0;
    table->now = older;
}

/* Length of the part that begins at `text`: spaces and what follows them up to another kind. */
static size_t part_length(const unsigned char *kind, const char *text, size_t length)
{
    const unsigned char *at = (const unsigned char *)text, *end = at + length, *start = at;
    while (at < end && kind[*at] == SPACE)
        at++;
    if (at == end)
        return (size_t)(at - start);
    if (kind[*at] == NEWLINE) {
        if (at > start)
            return (size_t)(at - start);
        while (at < end && kind[*at] == NEWLINE)
            at++;
        return (size_t)(at - start);
    }
    unsigned char first = kind[*at];
    if (first != HIGH) {
        const unsigned char *stop = at;
        while (stop < end && kind[*stop] == first)
            stop++;
        /* Characters above 127 are of every kind. */
        if (stop == end || kind[*stop] != HIGH)
            return (size_t)(stop - start);
    }
    while (at < end && kind[*at] != SPACE && kind[*at] != NEWLINE)
        at++;
    return (size_t)(at - start);
}

/* Looks a part up; returns whether it must be encoded and is not yet among those that will be. */
static int look_up(Table *table, Found *found, Py_ssize_t next_missing)
{
    if (found->length <= LONGEST_KEPT) {
        uint64_t hash = hash_of(found->text, found->length);
        Entry *entry = find(&table->now, hash, found->text, found->length);
        if (entry->hash && entry->count != PENDING) {
            found->ids = table->now.ids + entry->ids;
            found->count = entry->count;
            return 0;
        }
        if (entry->hash && entry->ids != DEAD) {
            found->missing = entry->ids;
            return 0; /* the first of its kind in the window fills the entry */
        }
        Entry *older = find(&table->before, hash, found->text, found->length);
        int known = older->hash && older->count != PENDING;
        if (!entry->hash)
            entry = claim(table, entry, hash, found->text, found->length);
        if (known) {
            found->ids = table->before.ids + older->ids;
            found->count = older->count;
            if (entry != NULL)
                fill(table, entry, found->ids, found->count);
            return 0;
        }
        if (entry != NULL)
            entry->ids = (uint32_t)next_missing;
        found->entry = entry;
    }
    found->missing = next_missing;
    return 1;
}

/* Appends the ids that Python returned for each of `count` parts to `fresh`. */
static int take_ids(Table *table, PyObject *result, Py_ssize_t count)
{
    Ids *fresh = &table->fresh;
    if (!PyList_Check(result) || PyList_Size(result) != count) {
        PyErr_SetString(PyExc_TypeError, "encode_parts must return a list of ids for each part");
        return -1;
    }
    fresh->length = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *ids = PyList_GetItem(result, i); /* borrowed */
        if (ids == NULL || !PyList_Check(ids)) {
            PyErr_SetString(PyExc_TypeError, "encode_parts must return lists of ids");
            return -1;
        }
        Py_ssize_t length = PyList_Size(ids);
        if (reserve(fresh, (size_t)length) < 0)
            return -1;
        table->starts[i] = fresh->length;
        for (Py_ssize_t j = 0; j < length; j++) {
            PyObject *item = PyList_GetItem(ids, j);
            long id = item == NULL ? -1 : PyLong_AsLong(item);
            if (id == -1 && PyErr_Occurred())
                return -1;
            if (id < 0 || id > INT32_MAX) {
                PyErr_SetString(PyExc_OverflowError, "an id does not fit in 31 bits");
                return -1;
            }
            fresh->items[fresh->length++] = (int32_t)id;
        }
    }
    table->starts[count] = fresh->length;
    return 0;
}

/* Encodes the parts that were not found in one call of Python, and keeps them. Where that fails,
   they are not kept. */
static int encode_missing(Table *table, PyObject *encode, PyObject *missing, size_t parts)
{
    PyObject *result = PyObject_CallFunctionObjArgs(encode, missing, NULL);
    int failed = result == NULL || take_ids(table, result, PyList_Size(missing)) < 0;
    Py_XDECREF(result);
    for (size_t i = 0; i < parts; i++) {
        Found *found = &table->window[i];
        if (found->missing < 0)
            continue;
        if (!failed) {
            found->ids = table->fresh.items + table->starts[found->missing];
            found->count = table->starts[found->missing + 1] - table->starts[found->missing];
        }
        if (found->entry == NULL)
            continue;
        if (failed)
            found->entry->ids = DEAD;
        else
            fill(table, found->entry, found->ids, found->count);
    }
    return failed ? -1 : 0;
}

/* Adds a part to the list of those to encode, which it makes. */
static int add_missing(PyObject **missing, const Found *found)
{
    if (*missing == NULL && (*missing = PyList_New(0)) == NULL)
        return -1;
    PyObject *part = PyUnicode_DecodeUTF8(found->text, (Py_ssize_t)found->length, "strict");
    int failed = part == NULL || PyList_Append(*missing, part) < 0;
    Py_XDECREF(part);
    return failed ? -1 : 0;
}

/* Appends the ids of the window's parts to `out`, a bytearray. */
static int append_window(const Table *table, size_t parts, PyObject *out)
{
    size_t total = 0, size = (size_t)table->item_size;
    for (size_t i = 0; i < parts; i++)
        total += table->window[i].count;
    Py_ssize_t before = PyByteArray_Size(out);
    if (total > ((size_t)PY_SSIZE_T_MAX - (size_t)before) / size) {
        PyErr_NoMemory();
        return -1;
    }
    if (PyByteArray_Resize(out, before + (Py_ssize_t)(total * size)) < 0)
        return -1;
    char *to = PyByteArray_AsString(out) + before;
    for (size_t i = 0; i < parts; i++) {
        const Found *found = &table->window[i];
        if (size == sizeof(int32_t)) {
            if (found->count)
                memcpy(to, found->ids, found->count * size);
            to += found->count * size;
            continue;
        }
        for (size_t j = 0; j < found->count; j++, to += size) {
            if (found->ids[j] > UINT16_MAX) {
                PyErr_SetString(PyExc_OverflowError, "an id does not fit in 16 bits");
                return -1;
            }
            uint16_t id = (uint16_t)found->ids[j];
            memcpy(to, &id, size);
        }
    }
    return 0;
}

/* Appends the ids of a text to `out`. */
static int encode_text(Table *table, PyObject *encode, const char *text, size_t length,
                       PyObject *out)
{
    while (length) {
        size_t parts = 0;
        Py_ssize_t count = 0;
        PyObject *missing = NULL;
        int failed = 0;
        if (table->now.full)
            age(table);
        while (parts < WINDOW && length && !failed) {
            Found *found = &table->window[parts++];
            *found = (Found){NULL, 0, -1, NULL, text, part_length(table->kind, text, length)};
            text += found->length;
            length -= found->length;
            if (look_up(table, found, count)) {
                count++;
                failed = add_missing(&missing, found);
            }
        }
        if (failed)
            age(table); /* an older entry that waits for its ids is never looked at */
        else if (missing != NULL)
            failed = encode_missing(table, encode, missing, parts);
        Py_XDECREF(missing);
        if (failed || append_window(table, parts, out) < 0)
            return -1;
    }
    return 0;
}

static PyObject *table_encode(PyObject *self, PyObject *arguments)
{
    PyObject *text, *encode, *out;
    Table *table = (Table *)self;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "UOO:encode", &text, &encode, &out))
        return NULL;
    if (!PyByteArray_Check(out)) {
        PyErr_SetString(PyExc_TypeError, "out must be a bytearray");
        return NULL;
    }
    if (table->busy || table->window == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "encode was called from encode_parts");
        return NULL;
    }
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &length);
    if (utf8 == NULL)
        return NULL;
    table->busy = 1;
    int failed = encode_text(table, encode, utf8, (size_t)length, out);
    table->busy = 0;
    if (failed)
        return NULL;
    Py_INCREF(Py_None);
    return Py_None;
}

static int make_generation(Generation *generation)
{
    generation->entries = calloc(SLOTS, sizeof(Entry));
    generation->keys = malloc(KEY_BYTES);
    generation->ids = malloc(ID_COUNT * sizeof(int32_t));
    return generation->entries && generation->keys && generation->ids ? 0 : -1;
}

static void free_generation(Generation *generation)
{
    free(generation->entries);
    free(generation->keys);
    free(generation->ids);
}

static int table_init(PyObject *self, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"kinds", "item_size", "max_parts", NULL};
    Table *table = (Table *)self;
    const unsigned char *kinds;
    Py_ssize_t length;
    int item_size, max_parts = MAX_PARTS;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "y#i|i:Table", keywords, &kinds, &length,
                                     &item_size, &max_parts))
        return -1;
    if (length != 128 || max_parts < 1 || max_parts > MAX_PARTS || table->now.entries
        || (item_size != 2 && item_size != 4)) {
        PyErr_SetString(PyExc_ValueError, "kinds are of the 128 ASCII characters, given once; "
                                          "item_size is 2 or 4; max_parts is from 1 to 32768");
        return -1;
    }
    for (int byte = 0; byte < 256; byte++)
        table->kind[byte] = byte < 128 ? (unsigned char)(FIRST_KIND + kinds[byte] % 16) : HIGH;
    table->kind[' '] = SPACE;
    table->kind['\n'] = NEWLINE;
    table->item_size = item_size;
    table->max_parts = (uint32_t)max_parts;
    table->window = malloc(WINDOW * sizeof(Found));
    table->starts = malloc((WINDOW + 1) * sizeof(size_t));
    if (make_generation(&table->now) < 0 || make_generation(&table->before) < 0
        || table->window == NULL || table->starts == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void table_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Table *table = (Table *)self;
    free_generation(&table->now);
    free_generation(&table->before);
    free(table->window);
    free(table->starts);
    free(table->fresh.items);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *table_len(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Table *table = (Table *)self;
    return PyLong_FromUnsignedLong((unsigned long)table->now.parts + table->before.parts);
}

static PyMethodDef table_methods[] = {
    {"encode", table_encode, METH_VARARGS,
     "encode(text, encode_parts, out): appends the ids of a text to a bytearray."},
    {"parts", table_len, METH_NOARGS, "Parts that the table holds."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_init, table_init},
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_methods, table_methods},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_doc, "Table(kinds, item_size, max_parts=32768): parts of text and their ids, bounded in memory."},
    {0, NULL},
};

static PyType_Spec table_spec = {
    .name = "megatron_fastmix.corpus.tokenizers._parts.Table",
    .basicsize = sizeof(Table),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = table_slots,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_parts",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__parts(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made == NULL)
        return NULL;
    PyObject *type = PyType_FromSpec(&table_spec);
    if (type == NULL || PyModule_AddObjectRef(made, "Table", type) < 0) {
        Py_XDECREF(type);
        Py_DECREF(made);
        return NULL;
    }
    Py_DECREF(type);
    return made;
}
