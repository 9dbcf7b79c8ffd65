/* The draws of a stretch of spread_order.py: `SpreadOrder.draw` and `visited_sample` in C, for every
   sample of a run passes here. The equations are explained there. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MULTIPLIER 0x9E3779B1u
#define FRACTION 0xFFFFFFFFu
#define DRAW_ORDER 2 /* of spread_order.py, which leaves another alone */
#define MAX_SIZE ((int64_t)1 << 62)

/* A source; a·b ≥ size points are permuted, of which an epoch visits `size`. */
typedef struct {
    int64_t edge, base, size;
    int64_t epoch; /* of `key`; -1: none yet */
    uint64_t a, b, key;
} Source;

typedef struct {
    PyObject ob_base;
    int64_t block_size, stride, start, end;
    uint64_t turn;
    Source *sources; /* (count,) */
    Py_ssize_t count;
    PyObject *epoch_key;
} Stretch;

static uint32_t reversed(uint32_t bits)
{
    bits = (bits & 0x55555555u) << 1 | (bits >> 1 & 0x55555555u);
    bits = (bits & 0x33333333u) << 2 | (bits >> 2 & 0x33333333u);
    bits = (bits & 0x0F0F0F0Fu) << 4 | (bits >> 4 & 0x0F0F0F0Fu);
    bits = (bits & 0x00FF00FFu) << 8 | (bits >> 8 & 0x00FF00FFu);
    return bits << 16 | bits >> 16;
}

static int64_t bit_count(uint64_t bits)
{
    int64_t count = 0;
    for (; bits; bits &= bits - 1)
        count++;
    return count;
}

/* Samples below the edge in `blocks` blocks; `_count` takes the difference of two. */
static int64_t samples_below(int64_t edge, uint64_t blocks)
{
    uint64_t high = reversed((uint32_t)edge);
    int64_t count = bit_count(high & blocks & ((high + blocks) ^ high ^ blocks));
    for (int bit = 0; blocks >> bit; bit++)
        if (blocks >> bit & 1)
            count += edge >> (32 - bit);
    return count;
}

static int64_t integer_sqrt(int64_t value)
{
    int64_t root = 0;
    for (int bit = 30; bit >= 0; bit--) {
        int64_t next = root | (int64_t)1 << bit;
        if (next * next <= value)
            root = next;
    }
    return root;
}

/* The first source whose edge reaches `value`. */
static Py_ssize_t source_at(const Stretch *stretch, int64_t value)
{
    Py_ssize_t low = 0, high = stretch->count - 1;
    while (low < high) {
        Py_ssize_t middle = low + (high - low) / 2;
        if (stretch->sources[middle].edge < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int set_epoch(Stretch *stretch, Py_ssize_t k, int64_t epoch)
{
    PyObject *found = PyObject_CallFunction(stretch->epoch_key, "nL", k, (long long)epoch);
    if (found == NULL)
        return -1;
    unsigned long long key = PyLong_AsUnsignedLongLong(found);
    Py_DECREF(found);
    if (PyErr_Occurred())
        return -1;
    stretch->sources[k].key = key & FRACTION;
    stretch->sources[k].epoch = epoch;
    return 0;
}

static uint64_t mixed(uint64_t value, uint64_t key)
{
    value = value * MULTIPLIER + key;
    return value ^ value >> 16;
}

static PyObject *stretch_locate(PyObject *self, PyObject *argument)
{
    Stretch *stretch = (Stretch *)self;
    long long i = PyLong_AsLongLong(argument);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    int64_t block = i < 0 || stretch->sources == NULL ? -1 : i / stretch->block_size;
    if (block < stretch->start || block >= stretch->end) {
        Py_INCREF(Py_None);
        return Py_None;
    }
    int64_t offset = reversed((uint32_t)block);
    int64_t position = i % stretch->block_size;
    uint64_t shift = ((uint64_t)block * MULTIPLIER + stretch->turn) >> 16;
    int64_t slot = (int64_t)(((uint64_t)(position * stretch->stride) + shift)
                             % (uint64_t)stretch->block_size);
    Py_ssize_t k = source_at(stretch, ((slot + 1) << 32) - offset);
    Source *source = &stretch->sources[k];
    int64_t lower = k ? stretch->sources[k - 1].edge : 0;
    int64_t ordinal = source->base + slot - (k ? (lower + offset) >> 32 : 0)
                      + samples_below(source->edge, (uint64_t)block)
                      - samples_below(lower, (uint64_t)block);
    int64_t epoch = ordinal / source->size;
    if (epoch != source->epoch && set_epoch(stretch, k, epoch) < 0)
        return NULL;
    uint64_t a = source->a, b = source->b, key = source->key;
    uint64_t visited = (uint64_t)(ordinal % source->size);
    do {
        uint64_t left = visited / b, right = visited % b;
        for (int pair = 0; pair < 2; pair++) {
            left = (left + mixed(right, key)) % a;
            right = (right + mixed(left, key)) % b;
        }
        visited = left * b + right;
    } while (visited >= (uint64_t)source->size);
    return Py_BuildValue("nK", k, (unsigned long long)visited);
}

static int stretch_init(PyObject *self, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"block_size", "stride", "turn", "start", "end", "edges", "base",
                               "sizes", "epoch_key", NULL};
    Stretch *stretch = (Stretch *)self;
    const char *edges, *base, *sizes;
    Py_ssize_t length, base_length, sizes_length;
    long long block_size, stride, start, end;
    unsigned long long turn;
    PyObject *epoch_key;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "LLKLLy#y#y#O:Stretch", keywords,
                                     &block_size, &stride, &turn, &start, &end, &edges, &length,
                                     &base, &base_length, &sizes, &sizes_length, &epoch_key))
        return -1;
    Py_ssize_t count = length / (Py_ssize_t)sizeof(int64_t);
    if (count < 1 || length % (Py_ssize_t)sizeof(int64_t) || base_length != length
        || sizes_length != length || stretch->sources != NULL) {
        PyErr_SetString(PyExc_ValueError,
                        "edges, base and sizes are int64 of one length, given once");
        return -1;
    }
    /* Within these limits no product below leaves 64 bits. */
    if (block_size < 1 || block_size > 1 << 24 || stride < 1 || stride > block_size || start < 0
        || end > (long long)1 << 31 || turn > FRACTION) {
        PyErr_SetString(PyExc_ValueError, "block_size is at most 2**24, turn and end are below "
                                          "2**32 and 2**31");
        return -1;
    }
    Source *sources = calloc((size_t)count, sizeof(Source));
    if (sources == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int64_t previous = 0;
    for (Py_ssize_t k = 0; k < count; k++) {
        Source *source = &sources[k];
        memcpy(&source->edge, edges + k * (Py_ssize_t)sizeof(int64_t), sizeof(int64_t));
        memcpy(&source->base, base + k * (Py_ssize_t)sizeof(int64_t), sizeof(int64_t));
        memcpy(&source->size, sizes + k * (Py_ssize_t)sizeof(int64_t), sizeof(int64_t));
        if (source->size < 1 || source->size >= MAX_SIZE
            || source->edge < previous || source->edge > (int64_t)block_size << 32) {
            free(sources);
            PyErr_SetString(PyExc_ValueError, "edges rise to block_size * 2**32, sizes are from 1 "
                                              "to 2**62");
            return -1;
        }
        previous = source->edge;
        source->epoch = -1;
        int64_t root = integer_sqrt(source->size);
        source->a = (uint64_t)root;
        source->b = (uint64_t)((source->size + root - 1) / root);
    }
    stretch->block_size = block_size;
    stretch->stride = stride;
    stretch->turn = turn;
    stretch->start = start;
    stretch->end = end;
    stretch->sources = sources;
    stretch->count = count;
    Py_INCREF(epoch_key);
    stretch->epoch_key = epoch_key;
    return 0;
}

static void stretch_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Stretch *stretch = (Stretch *)self;
    free(stretch->sources);
    Py_XDECREF(stretch->epoch_key);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef stretch_methods[] = {
    {"locate", stretch_locate, METH_O,
     "locate(i) -> (source, sample) of draw i, or None where it lies in another stretch."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stretch_slots[] = {
    {Py_tp_init, stretch_init},
    {Py_tp_dealloc, stretch_dealloc},
    {Py_tp_methods, stretch_methods},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_doc, "Draws of the blocks from `start` to `end`, which have the same weights."},
    {0, NULL},
};

static PyType_Spec stretch_spec = {
    .name = "megatron_fastmix.blend.order._draws.Stretch",
    .basicsize = sizeof(Stretch),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = stretch_slots,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_draws",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__draws(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made == NULL)
        return NULL;
    PyObject *type = PyType_FromSpec(&stretch_spec);
    if (type == NULL || PyModule_AddObjectRef(made, "Stretch", type) < 0
        || PyModule_AddIntConstant(made, "DRAW_ORDER", DRAW_ORDER) < 0) {
        Py_XDECREF(type);
        Py_DECREF(made);
        return NULL;
    }
    Py_DECREF(type);
    return made;
}
