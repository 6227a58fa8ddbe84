// The least a hub can do: one send(2) per viewer and frame, and no more. Everything else is compared with it.
//
//   floor VIEWERS FRAMES_PER_S SECONDS BYTES
//
// Prints `port <n>`, upgrades whoever connects, waits for `go` on its input, sends, prints `done <frames>`,
// and stays until its input ends, so that its CPU time can be read from outside. Sockets do not block: what
// a full one does not take is lost, and the viewers' count shows it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FRAME_MAX = 65535, REQUEST_MAX = 4096 };

// -- the handshake's answer: base64(SHA-1(key + the protocol's constant)), RFC 6455 §4.2.2 --

static uint32_t rotated(uint32_t word, int bits) { return word << bits | word >> (32 - bits); }

static void sha1_block(uint32_t state[5], const uint8_t block[64]) {
    uint32_t word[80];
    for (int i = 0; i < 16; i++)
        word[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 80; i++) word[i] = rotated(word[i - 3] ^ word[i - 8] ^ word[i - 14] ^ word[i - 16], 1);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 80; i++) {
        uint32_t mixed, constant;
        if (i < 20) mixed = (b & c) | (~b & d), constant = 0x5a827999;
        else if (i < 40) mixed = b ^ c ^ d, constant = 0x6ed9eba1;
        else if (i < 60) mixed = (b & c) | (b & d) | (c & d), constant = 0x8f1bbcdc;
        else mixed = b ^ c ^ d, constant = 0xca62c1d6;
        uint32_t next = rotated(a, 5) + mixed + e + constant + word[i];
        e = d, d = c, c = rotated(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

static void accept_text(const char *key, char out[29]) {
    uint8_t text[128] = {0};  // two blocks: 24 bytes of key, 36 of the constant, padding, length
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    int length = snprintf((char *)text, 64, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    text[length] = 0x80;
    text[126] = length * 8 >> 8, text[127] = length * 8 & 255;
    sha1_block(state, text), sha1_block(state, text + 64);
    uint8_t digest[21] = {0};
    for (int i = 0; i < 20; i++) digest[i] = state[i / 4] >> (24 - 8 * (i % 4));
    const char *letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 7; i++) {
        uint32_t three = (uint32_t)digest[3 * i] << 16 | digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int k = 0; k < 4; k++) out[4 * i + k] = letters[three >> (18 - 6 * k) & 63];
    }
    out[27] = '=', out[28] = 0;
}

static int upgrade(int viewer) {
    char request[REQUEST_MAX], answer[256], accepted[29];
    size_t have = 0;
    do {
        ssize_t got = read(viewer, request + have, sizeof request - 1 - have);
        if (got <= 0) return -1;
        request[have += got] = 0;
    } while (!strstr(request, "\r\n\r\n") && have < sizeof request - 1);
    char *key = strcasestr(request, "sec-websocket-key:");
    if (!key) return -1;
    key += strlen("sec-websocket-key:");
    accept_text(key + strspn(key, " "), accepted);
    int length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: %s\r\n\r\n", accepted);
    if (write(viewer, answer, length) != length) return -1;
    int one = 1;
    setsockopt(viewer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fcntl(viewer, F_SETFL, O_NONBLOCK);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int viewers = atoi(argv[1]), size = atoi(argv[4]), here = 0;
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    if (size < 32 || size > FRAME_MAX) return 2;
    int *viewer = malloc(viewers * sizeof *viewer);
    int door = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    if (bind(door, (void *)&at, sizeof at) || listen(door, 4096) || getsockname(door, (void *)&at, &length)) return 1;
    printf("port %d\n", ntohs(at.sin_port)), fflush(stdout);

    struct pollfd waiting[2] = {{.fd = 0, .events = POLLIN}, {.fd = door, .events = POLLIN}};
    for (char line[8]; poll(waiting, 2, -1) >= 0;) {
        if (waiting[0].revents) {
            if (read(0, line, sizeof line) <= 0) return 0;
            break;
        }
        int come = accept(door, NULL, NULL);
        if (come >= 0 && (here == viewers || upgrade(come))) close(come);
        else if (come >= 0) viewer[here++] = come;
    }

    static char frame[4 + FRAME_MAX];
    int head = size < 126 ? 2 : 4;
    frame[0] = (char)0x81, frame[1] = head == 2 ? size : 126;
    if (head == 4) frame[2] = size >> 8, frame[3] = size & 255;
    memset(frame + head, 'x', size);
    struct timespec began, due, now;
    clock_gettime(CLOCK_MONOTONIC, &began);
    long frames = rate * seconds + 0.5, lost = 0;
    for (long n = 0; n < frames; n++) {
        double after = began.tv_nsec / 1e9 + n / rate;
        due.tv_sec = began.tv_sec + (long)after, due.tv_nsec = (after - (long)after) * 1e9;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
        int marked = snprintf(frame + head, size, "@t=%lld ", now.tv_sec * 1000000000ll + now.tv_nsec);
        frame[head + marked] = 'x';  // over the text's end
        for (int i = 0; i < here; i++) lost += send(viewer[i], frame, head + size, MSG_NOSIGNAL) < head + size;
    }
    if (lost) fprintf(stderr, "%ld frames were not taken by full sockets\n", lost);
    printf("done %ld\n", frames), fflush(stdout);
    for (char line[8]; read(0, line, sizeof line) > 0;) {}
    return 0;
}
